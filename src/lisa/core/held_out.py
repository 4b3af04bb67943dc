"""Held-out readings: the condition gap with its interval, and the onset of control.

The condition gap is the control gain with the right conditions minus the one with conditions shuffled across the
samples (captions, noise and timesteps stay): what is really owed to the condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisa.common.errors import LisaError
from lisa.common.intervals import FloatArray, IndexArray, Interval, bootstrap, ratio_of_sums
from lisa.core.residual import likelihood_residual, sample_sums
from lisa.core.terms import AlignmentTerms


@dataclass(frozen=True)
class SampleSums:
    """Per-sample sums of squares of held-out passes, each (N,), on any device.

    Attributes:
        prior: ``|target - prior|^2``, which is the residual's energy too.
        controlled: ``|target - controlled|^2``.
        error: ``|residual - decoded|^2``; NaN where there is no decoder.
    """

    prior: Tensor
    controlled: Tensor
    error: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, target: Tensor, prior: Tensor, controlled: Tensor, terms: AlignmentTerms | None = None) -> SampleSums:
        """The sums of one batch (B, ...), with the decoder's from what the aligner returned."""
        energy = sample_sums(likelihood_residual(target, prior))
        error = torch.full_like(energy, math.nan) if terms is None else terms.squared_error
        return cls(energy, sample_sums(likelihood_residual(target, controlled)), error)

    @classmethod
    def concatenated(cls, parts: Iterable[SampleSums]) -> SampleSums:
        """Several batches as one.

        Raises:
            LisaError: there is none.
        """
        every = list(parts)
        if not every:
            raise LisaError("there are no held-out samples", "Hold out at least two")
        columns = zip(*((part.prior, part.controlled, part.error) for part in every), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def apply(self, function: Callable[[Tensor], Tensor]) -> SampleSums:
        """Each tensor through ``function``: gathering over processes, or a move to another device."""
        return SampleSums(function(self.prior), function(self.controlled), function(self.error))

    def grouped(self, groups: Sequence[int] | Tensor) -> SampleSums:
        """Rows of the same group added up, in order of the group's number.

        For images judged at several noise levels: the bootstrap must draw images, not passes.
        """
        _, rows = torch.unique(torch.as_tensor(groups).cpu(), return_inverse=True)
        count = int(rows.max()) + 1

        def add_up(values: Tensor) -> Tensor:
            return values.new_zeros(count).index_add(0, rows.to(values.device), values)

        return self.apply(add_up)

    def __len__(self) -> int:
        return self.prior.shape[0]


@dataclass(frozen=True)
class ConditionGap:
    """Held-out readings with their 95% intervals over samples.

    Attributes:
        control_gain: with the right conditions.
        shuffled_gain: with shuffled conditions.
        gap: the condition gap, ``control_gain - shuffled_gain``, paired by sample.
        decoder_r2: with the right conditions; NaN without a decoder, as the next.
        decoder_gap: the same gap for the decoder's R2.
    """

    control_gain: Interval
    shuffled_gain: Interval
    gap: Interval
    decoder_r2: Interval
    decoder_gap: Interval

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Each as ``{"value", "low", "high"}``."""
        return {name: interval.to_json() for name, interval in vars(self).items()}

    @property
    def decoder_reads_nothing(self) -> bool:
        """Whether control is there and the decoder's R2 is surely under a fiftieth of it: alignment did not help.

        At learning rates far above the reference's, a decoder can silence all its hidden channels in its first steps
        (what it adds is noise then, and less of it is the quickest gain) and not come back.
        """
        return self.control_gain.above_zero and self.decoder_r2.high < self.control_gain.value / 50


def condition_gap(right: SampleSums, shuffled: SampleSums, *, seed: int = 0, n: int = 1000) -> ConditionGap:
    """The condition gap and its parts, with bootstrap intervals over samples.

    Args:
        right: sums of the pass with each sample's own condition.
        shuffled: sums of the same samples in the same order, with the same noise, under another sample's condition
            (see :func:`derangement`).
        seed: of the bootstrap.
        n: resamples.

    Raises:
        LisaError: different numbers of samples, or none.
    """
    if len(right) != len(shuffled):
        raise LisaError(
            f"{len(right)} samples with the right and {len(shuffled)} with shuffled conditions",
            "Run both passes on the same samples in the same order",
        )
    prior, controlled, error = _arrays(right)
    other_prior, other_controlled, other_error = _arrays(shuffled)

    def interval(statistic: Callable[[IndexArray], FloatArray]) -> Interval:
        return bootstrap(statistic, len(prior), seed=seed, n=n)

    def explained(above: FloatArray, below: FloatArray) -> Callable[[IndexArray], FloatArray]:
        return lambda rows: 1 - ratio_of_sums(above, below, rows)

    gain, other_gain = explained(controlled, prior), explained(other_controlled, other_prior)
    r2, other_r2 = explained(error, prior), explained(other_error, other_prior)
    return ConditionGap(
        control_gain=interval(gain),
        shuffled_gain=interval(other_gain),
        gap=interval(lambda rows: gain(rows) - other_gain(rows)),
        decoder_r2=interval(r2),
        decoder_gap=interval(lambda rows: r2(rows) - other_r2(rows)),
    )


def derangement(n: int, seed: int = 0) -> Tensor:
    """A random order (n,) of 0 .. n-1 that leaves nothing in its place; each such order is equally likely.

    Raises:
        LisaError: ``n`` is below 2, where there is none.
    """
    if n < 2:
        raise LisaError(f"the conditions of {n} sample cannot be shuffled", "Hold out at least 2 samples")
    generator = np.random.default_rng(seed)
    own = np.arange(n)
    while True:  # one in e orders will do
        order = generator.permutation(n)
        if not (order == own).any():
            return torch.from_numpy(order)


class OnsetDetector:
    """Finds the onset of control: the first reading whose whole interval lies above zero, and stays there.

    Args:
        stays: readings in a row, the first one included, that must lie above zero.
        least: what counts as above zero. Right and shuffled passes share their noise, so a gap of a millionth is
            already beyond sampling noise, long before anybody would call it control.
    """

    def __init__(self, stays: int = 3, least: float = 0.002) -> None:
        if stays < 1 or not least >= 0:
            raise LisaError(
                f"an onset that stays for {stays} readings above {least}",
                "Give at least 1, and a gap of 0 or more",
            )
        self._stays, self._least = stays, least
        self._first: int | None = None
        self._run = 0
        self._last_step = -1
        self.onset: int | None = None

    def observe(self, step: int, gap: Interval) -> int | None:
        """Hear the held-out condition gap at ``step``; returns the onset's step once it is established, for good.

        A step heard before (after a restart) is not counted again.
        """
        if self.onset is not None or step <= self._last_step:
            return self.onset
        self._last_step = step
        if not gap.low > self._least:
            self._first, self._run = None, 0
            return None
        if self._first is None:
            self._first = step
        self._run += 1
        if self._run >= self._stays:
            self.onset = self._first
        return self.onset

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        return {"first": self._first, "run": self._run, "last_step": self._last_step, "onset": self.onset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._first, self._run = state["first"], state["run"]
        self._last_step, self.onset = state["last_step"], state["onset"]


def _arrays(sums: SampleSums) -> tuple[FloatArray, FloatArray, FloatArray]:
    prior, controlled, error = (
        each.detach().cpu().double().numpy() for each in (sums.prior, sums.controlled, sums.error)
    )
    return prior, controlled, error
