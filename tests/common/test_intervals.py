import json
import math

import numpy as np
import pytest
from scipy import stats

from lisa.common.errors import LisaError
from lisa.common.intervals import Interval, bootstrap, bootstrap_mean, bootstrap_ratio, t_interval


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 11, 30])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_t_interval_is_scipys(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    low, high = stats.t.interval(level, count - 1, loc=values.mean(), scale=stats.sem(values))
    ours = t_interval(values, level)
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))


def test_bootstrap_mean_covers_and_is_about_as_wide_as_theory() -> None:
    generator = np.random.default_rng(0)
    hits, widths = 0, []
    for seed in range(200):
        interval = bootstrap_mean(generator.normal(1.0, 1.0, 50), seed=seed, n=400)
        hits += interval.low <= 1.0 <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.88 <= hits / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 / math.sqrt(50), rel=0.06)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    values = np.random.default_rng(1).normal(size=20)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_resamples_in_chunks_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=10)
    whole = bootstrap_mean(values, n=500)
    monkeypatch.setattr("lisa.common.intervals._INDICES_AT_ONCE", 70)
    assert bootstrap_mean(values, n=500) == whole


def test_ratio_is_of_sums_and_resamples_pairs() -> None:
    below = np.array([1.0, 10.0, 3.0, 5.0])
    interval = bootstrap_ratio(2 * below, below)
    assert interval == Interval(2.0, 2.0, 2.0)  # only pairs drawn together are always in ratio 2
    assert bootstrap_ratio([1.0, 3.0], [1.0, 1.0]).value == 2.0


def test_a_resample_without_denominator_is_left_out() -> None:
    interval = bootstrap_ratio([1.0, 0.0], [1.0, 0.0])
    assert interval == Interval(1.0, 1.0, 1.0)


def test_one_sample_is_no_evidence_and_none_is_an_error() -> None:
    for interval in (bootstrap_mean([0.7]), t_interval([0.7])):
        assert interval == Interval(0.7, -math.inf, math.inf)
        assert not interval.above_zero
        assert json.loads(json.dumps(interval.to_json(), allow_nan=False)) == {"value": 0.7, "low": None, "high": None}
    for make in (bootstrap_mean, t_interval):
        with pytest.raises(LisaError, match="no samples"):
            make([])
    with pytest.raises(LisaError, match="level"):
        bootstrap_mean([1.0, 2.0], level=95)
    with pytest.raises(LisaError, match="2 numerators and 1 denominators"):
        bootstrap_ratio([1.0, 2.0], [1.0])


def test_any_statistic() -> None:
    values = np.array([1.0, 2.0, 3.0, 100.0])
    interval = bootstrap(lambda rows: np.median(values[rows], axis=-1), 4, seed=0)
    assert interval.value == 2.5
    assert interval.low >= 1.0
    assert interval.high <= 100.0
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
