import collections
import math

import pytest
import torch

from lisa.common.errors import LisaError
from lisa.common.intervals import Interval
from lisa.core import OnsetDetector, SampleSums, attach, condition_gap, derangement
from lisa.core.held_out import ConditionGap
from lisa.core.terms import idle_terms


def sums(samples=40, explained=0.3, r2=0.5, seed=0, noise=0.05) -> SampleSums:
    """Samples whose residuals differ tenfold in energy, ``explained`` up to ``noise``."""
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(samples, generator=torch.Generator().manual_seed(99)) * 10 + 1
    jitter = torch.randn(samples, generator=generator) * noise
    return SampleSums(prior, prior * (1 - explained + jitter), prior * (1 - r2 + jitter))


def test_the_gap_is_the_difference_of_gains_of_pooled_sums() -> None:
    right, shuffled = sums(explained=0.3, r2=0.5), sums(explained=0.1, r2=0.45, seed=1)
    gap = condition_gap(right, shuffled)
    gain = float(1 - right.controlled.sum() / right.prior.sum())
    other = float(1 - shuffled.controlled.sum() / shuffled.prior.sum())
    assert gap.control_gain.value == pytest.approx(gain, rel=1e-5)
    assert gap.shuffled_gain.value == pytest.approx(other, rel=1e-5)
    assert gap.gap.value == pytest.approx(gain - other, rel=1e-5)
    assert gap.decoder_r2.value == pytest.approx(float(1 - right.error.sum() / right.prior.sum()), rel=1e-5)
    expected = float((shuffled.error.sum() - right.error.sum()) / right.prior.sum())
    assert gap.decoder_gap.value == pytest.approx(expected, rel=1e-5)
    for interval in vars(gap).values():
        assert interval.low < interval.value < interval.high
    assert gap.gap.above_zero
    assert gap.to_json()["gap"] == gap.gap.to_json()
    assert condition_gap(right, shuffled) == gap


def test_the_gap_is_resampled_in_pairs() -> None:
    """What both passes share (hard samples) must cancel: here the gap is 0.1 for every single sample."""
    right = sums(noise=0.5)
    shuffled = SampleSums(right.prior, right.controlled + 0.1 * right.prior, right.error)
    gap = condition_gap(right, shuffled)
    assert gap.gap.high - gap.gap.low < 1e-5
    assert gap.control_gain.high - gap.control_gain.low > 0.1


def test_no_control_is_not_above_zero() -> None:
    above = sum(
        condition_gap(sums(explained=0.0, seed=s), sums(explained=0.0, seed=1000 + s), n=300).gap.above_zero
        for s in range(100)
    )
    assert above <= 9  # 2.5 expected; percentile intervals of 40 samples are a little narrow


def test_without_a_decoder_its_readings_are_unknown() -> None:
    right = SampleSums(torch.ones(5), torch.zeros(5), torch.full((5,), math.nan))
    gap = condition_gap(right, right)
    assert math.isnan(gap.decoder_r2.value)
    assert gap.to_json()["decoder_gap"] == {"value": None, "low": None, "high": None}
    assert gap.control_gain == Interval(1.0, 1.0, 1.0)


def test_one_image_is_no_evidence_and_passes_of_one_image_are_one() -> None:
    one = sums(samples=1)
    assert not condition_gap(one, sums(samples=1, explained=0.0, seed=1)).gap.above_zero
    six = sums(samples=6)
    grouped = six.grouped([7, 7, 3, 3, 3, 9])
    torch.testing.assert_close(grouped.prior, torch.stack([six.prior[2:5].sum(), six.prior[:2].sum(), six.prior[5]]))
    torch.testing.assert_close(grouped.error.sum(), six.error.sum())
    assert len(grouped) == 3


def test_sums_of_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    target, prior, controlled = (torch.randn(6, 4, 3, 3, generator=generator) for _ in range(3))
    whole = SampleSums.of(target, prior, controlled)
    parts = SampleSums.concatenated(
        SampleSums.of(target[i], prior[i], controlled[i]) for i in (slice(0, 4), slice(4, 6))
    )
    torch.testing.assert_close(parts.prior, whole.prior)
    torch.testing.assert_close(parts.controlled, (target - controlled).square().sum(dim=(1, 2, 3)))
    assert parts.error.isnan().all()
    assert SampleSums.of(target, prior, controlled, idle_terms(target, prior)).error.isnan().all()
    assert torch.equal(whole.apply(torch.neg).prior, -whole.prior)
    with pytest.raises(LisaError, match="no held-out samples"):
        SampleSums.concatenated([])
    with pytest.raises(LisaError, match="6 samples with the right and 5"):
        condition_gap(whole, SampleSums.of(target[:5], prior[:5], controlled[:5]))


def test_a_held_out_reading_end_to_end(make_side) -> None:
    """Side network and decoder that see the condition: only the right one explains the residual."""
    side = make_side().eval()
    aligner = attach(side, "zeros.0", out_channels=4, stride=1)
    optimiser = torch.optim.Adam([*side.parameters(), *aligner.parameters()], 3e-3)
    condition = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    target, prior, t = condition.flip(1), torch.zeros_like(condition), torch.full((16,), 500)
    for _ in range(200):
        with aligner.observing():
            side(condition)
        aligner(target, prior, t).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    order = derangement(16, seed=1)
    readings = []
    for given in (condition, condition[order]):
        with torch.no_grad(), aligner.observing():
            side(given)
            terms = aligner(target, prior, t)
        readings.append(SampleSums.of(target, prior, terms.decoded["zeros.0"], terms))
    gap = condition_gap(*readings)
    assert gap.gap.above_zero
    assert gap.decoder_gap == gap.gap


@pytest.mark.parametrize("n", [2, 3, 7, 64])
def test_a_derangement_leaves_nothing_in_place(n) -> None:
    for seed in range(30):
        order = derangement(n, seed)
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()
    assert torch.equal(derangement(n, 3), derangement(n, 3))
    for few in (0, 1):
        with pytest.raises(LisaError, match="at least 2"):
            derangement(few)


def test_derangements_are_equally_likely() -> None:
    counts = collections.Counter(tuple(derangement(4, seed).tolist()) for seed in range(1800))
    assert len(counts) == 9
    assert min(counts.values()) > 140
    assert max(counts.values()) < 260


def gap(low: float) -> Interval:
    return Interval(low + 0.01, low, low + 0.02)


def test_the_onset_is_the_first_reading_that_stays() -> None:
    detector = OnsetDetector(stays=3)
    lows = [-0.1, 0.1, 0.1, -0.01, 0.1, 0.2, 0.0, 0.1, 0.1, 0.1, -1.0]
    found = [detector.observe(10 * step, gap(low)) for step, low in enumerate(lows)]
    assert found == [None] * 9 + [70, 70]
    assert detector.onset == 70
    assert OnsetDetector(stays=1).observe(5, gap(0.1)) == 5
    with pytest.raises(LisaError, match="0 readings"):
        OnsetDetector(stays=0)


def test_a_gap_that_is_only_numerically_above_zero_is_no_onset() -> None:
    tiny = Interval(2e-6, 1e-6, 3e-6)
    assert OnsetDetector(stays=1).observe(5, tiny) is None
    assert OnsetDetector(stays=1, least=0).observe(5, tiny) == 5
    with pytest.raises(LisaError, match="above -1"):
        OnsetDetector(least=-1)


def test_the_onset_survives_a_restart_that_repeats_a_reading() -> None:
    detector = OnsetDetector()
    detector.observe(10, gap(0.1))
    detector.observe(20, gap(0.1))
    twin = OnsetDetector()
    twin.load_state_dict(detector.state_dict())
    assert twin.observe(20, gap(0.1)) is None
    assert twin.observe(30, gap(0.1)) == 10
    assert twin.onset == 10


@pytest.mark.parametrize(
    ("gain", "r2", "unread"),
    [
        (Interval(0.2, 0.1, 0.3), Interval(0.0, -0.001, 0.001), True),
        (Interval(0.2, 0.1, 0.3), Interval(0.03, 0.02, 0.04), False),
        (Interval(0.2, 0.1, 0.3), Interval(0.0, -0.02, 0.02), False),  # not surely
        (Interval(0.02, -0.1, 0.1), Interval(0.0, -0.001, 0.0), False),  # nor is there control
        (Interval(0.2, 0.1, 0.3), Interval(math.nan, math.nan, math.nan), False),  # nor a decoder
    ],
)
def test_whether_the_decoder_reads_nothing(gain, r2, unread):
    assert ConditionGap(gain, gain, gain, r2, r2).decoder_reads_nothing is unread
