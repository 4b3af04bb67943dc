"""Plateau, steps to a level, speed-up, onset: on curves whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.compare import wording
from lisa.compare.speed_up import Needed, mean_needed, onset, plateau, smooth, speed_up, steps_to

STEPS = np.arange(0, 2001, 20.0)


def curve(steps, half, top=0.4):
    return top * (1 - 2 ** (-steps / half))


def sigmoid(steps, middle, width=60.0, top=0.4):
    return top / (1 + np.exp(-(steps - middle) / width))


def test_smoothing_leaves_straight_lines_and_halves_no_window():
    line = 3 + 2 * np.arange(9.0)
    assert smooth(line) == pytest.approx(line)
    assert smooth([0, 0, 3, 0, 0]) == pytest.approx([0, 1, 1, 1, 0])
    assert smooth([5.0]) == pytest.approx([5.0])


def test_plateau_of_a_curve_that_is_flat_and_of_one_that_is_not():
    flat = plateau(STEPS, curve(STEPS, 100))
    assert flat.reached and flat.level == pytest.approx(0.4, rel=1e-3)
    rising = plateau(STEPS, STEPS / 2000)  # at 0.9 in the middle of its last fifth, over which it gains 0.2
    assert not rising.reached
    assert (rising.level, rising.growth) == (pytest.approx(0.9), pytest.approx(0.2 / 0.9))
    assert not plateau(STEPS, np.zeros_like(STEPS)).reached
    assert not plateau(STEPS, -curve(STEPS, 100)).reached
    assert not plateau(STEPS, 1 - STEPS / 4000).reached  # it falls
    noisy = curve(STEPS, 100) + np.random.default_rng(0).normal(0, 0.004, len(STEPS))
    assert plateau(STEPS, noisy).reached  # the last reading alone may be 1% above
    with pytest.raises(LisaError, match="1 readings has no plateau"):
        plateau([0], [0.0])


def test_steps_to_a_level_are_exact_on_straight_lines():
    values = STEPS / 1000
    assert steps_to(STEPS, values, 0.5) == pytest.approx(500)
    assert steps_to(STEPS, values, 0.505) == pytest.approx(505)  # between two readings
    assert math.isinf(steps_to(STEPS, values, 2.1))
    assert steps_to(STEPS, values + 1, 0.5) == 20  # a warm start is above from the beginning
    assert math.isinf(steps_to([0], [0.5], 0.1)), "it diverged before its second reading"


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("shape", [curve, sigmoid])
def test_a_curve_twice_as_fast_is_twice_as_fast(shape, share):
    slow, fast = shape(STEPS, 400.0), shape(2 * STEPS, 400.0)
    level = share * 0.4 * 0.96
    ratio = steps_to(STEPS, slow, level) / steps_to(STEPS, fast, level)
    assert ratio == pytest.approx(2, rel=0.02)


def test_the_ratio_is_the_factor_in_time_whatever_the_curve():
    rng, steps, tried = np.random.default_rng(0), np.arange(0, 6001, 10.0), 0
    for factor, half, share in zip(
        rng.uniform(0.3, 3, 60), rng.uniform(150, 400, 60), [0.95, 0.8, 0.5] * 20, strict=True
    ):
        needed = [steps_to(steps, curve(steps * speed, half), share * 0.4) for speed in (1, factor)]
        if not any(math.isinf(each) for each in needed):
            tried += 1
            assert needed[0] / needed[1] == pytest.approx(factor, rel=0.03)
    assert tried >= 50


def test_noise_alone_is_no_speed_up():
    """Five seeds of the same curve with noise: the interval holds 1 nearly always, and the value is near it."""
    held, values = 0, []
    for trial in range(40):
        rng = np.random.default_rng(trial)
        needs = [
            [
                Needed(
                    steps_to(STEPS, sigmoid(STEPS, rng.normal(400, 30)) + rng.normal(0, 0.01, len(STEPS)), 0.38), 2e3
                )
                for _ in range(5)
            ]
            for _ in range(2)
        ]
        result = speed_up(*needs)
        held += result.interval.low < 1 < result.interval.high
        values.append(math.log(result.interval.value))
    assert held >= 34 and abs(np.mean(values)) < 0.03


def needs(*amounts, seen=1000.0):
    return [Needed(amount, seen) for amount in amounts]


def test_speed_up_is_paired_by_seed():
    """Seeds differ tenfold, the arm is always exactly twice as fast: no spread at all. And the value by hand."""
    exact = speed_up(needs(100, 300, 1000), needs(50, 150, 500))
    assert exact.interval.to_json() == pytest.approx({"value": 2, "low": 2, "high": 2})
    assert exact.per_seed == pytest.approx((2, 2, 2)) and exact.bound == ""
    result = speed_up(needs(100, 100), needs(50, 200)).interval  # logs +-0.693; t(1) = 12.706
    assert result.value == pytest.approx(1)
    assert result.high == pytest.approx(math.exp(12.7062 * math.log(2)), rel=1e-3)
    assert result.low == pytest.approx(1 / result.high)


def test_an_arm_compared_with_itself_is_as_fast_as_itself():
    same = needs(100, math.inf, 300)
    assert speed_up(same[::2], same[::2]).interval.to_json() == pytest.approx({"value": 1, "low": 1, "high": 1})
    both_never = speed_up(same, same)
    assert both_never.bound == "unknown" and math.isnan(both_never.per_seed[1])
    assert both_never.to_json()["low"] is None and both_never.to_json()["high"] is None


def test_what_was_never_reached_bounds_the_speed_up():
    arm = speed_up(needs(500, 500), needs(250, math.inf))
    assert arm.bound == "at most" and arm.per_seed == pytest.approx((2, 0.5))
    assert arm.interval.value == pytest.approx(1) and arm.to_json()["low"] is arm.to_json()["high"] is None
    base = speed_up(needs(500, math.inf), needs(250, 250))
    assert base.bound == "at least" and base.per_seed == pytest.approx((2, 4))
    assert base.to_json()["high"] is base.to_json()["low"] is None and base.interval.value == pytest.approx(8**0.5)
    assert speed_up(needs(500, math.inf), needs(math.inf, 250)).bound == "unknown"
    nobody = speed_up(needs(math.inf), needs(math.inf))
    assert nobody.bound == "unknown" and nobody.to_json()["value"] is None
    never = speed_up(needs(500, 400), needs(math.inf, math.inf))
    assert never.bound == "at most" and never.interval.value == pytest.approx(0.2**0.5)


def test_what_holds_of_every_seed_is_told_where_there_is_no_interval():
    def said(base, arm):
        missing = [[i for i, each in enumerate(of) if each.never] for of in (arm, base)]
        found = speed_up(base, arm).to_json() | {"seeds": [0, 1], "never": missing[0], "baseline_never": missing[1]}
        return wording.speed(found, "plain")

    at_least = ("≥ 2.82", "plain never in 1 of 2; none below 2.00")
    assert said(needs(500, math.inf), needs(250, 250)) == at_least, (
        "the root of 8 is 2.8284: a lower bound is rounded down"
    )
    at_most = ("≤ 1.04", "never in 1 of 2 seeds; none above 2.09")
    assert said(needs(500, 520), needs(250, math.inf)) == ("≤ 1.02", "never in 1 of 2 seeds; none above 2.00")
    assert said(needs(500, 510), needs(240, math.inf)) == at_most, "1.0308 and 2.0833: an upper one is rounded up"
    assert said(needs(500, math.inf), needs(math.inf, 250)) == ("?", "never in 1 of 2 seeds, plain in 1")


def test_the_bounds_are_bounds():
    """Whatever the hidden truth beyond the end of the run is, "at most" is at most and "at least" is at least."""
    for hidden in (1001, 2000, 9000):
        truth = speed_up(needs(500, 500), needs(250, hidden, seen=1e9)).interval.value
        assert truth <= speed_up(needs(500, 500), needs(250, math.inf)).interval.value
        truth = speed_up(needs(500, hidden, seen=1e9), needs(250, 250)).interval.value
        assert truth >= speed_up(needs(500, math.inf), needs(250, 250)).interval.value


def test_one_seed_has_no_interval_and_no_seed_is_an_error():
    one = speed_up(needs(200), needs(100)).to_json()
    assert (one["value"], one["low"], one["high"]) == (pytest.approx(2), None, None)
    with pytest.raises(LisaError, match="2 seeds of the baseline and 1 of the arm"):
        speed_up(needs(1, 2), needs(1))


def test_onset_has_to_stay():
    steps = [0, 10, 20, 30, 40, 50, 60]
    assert onset(steps, [0, 1, 1, 0, 1, 1, 1], 0.5) == 40
    assert onset(steps, [0, 0, 0.5, 0.5, 0.5, 0, 0], 0.5) == 20  # on the threshold counts
    assert math.isinf(onset(steps, [0, 0, 0, 0, 0, 1, 1], 0.5))  # too late to have stayed
    assert math.isinf(onset([], [], 0.5))


def test_mean_of_what_was_needed():
    assert mean_needed(needs(100, 300)).interval.value == 200
    some = mean_needed(needs(100, math.inf))
    assert (some.bound, some.interval.value) == ("at least", 550) and some.to_json()["high"] is None
    assert mean_needed(needs(900, 950, math.inf)).to_json()["low"] is None
    assert some.to_json()["per_seed"] == [100, None]
    assert mean_needed(needs(math.inf, math.inf)).to_json()["value"] is None
