"""What was measured of one layer at one noise level, and the figures with intervals that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.analyse.sensitivity import ALL
from lisa.common.intervals import Interval, bootstrap, ratio_of_sums

FloatArray = NDArray[np.float64]
#: What probes predict.
TARGETS = ("condition", "noise", "caption", "score")
#: The inputs that a block crosses: the condition; picture and noise, which together are x_t; the caption.
FACTORS = ("condition", "picture", "noise", "caption")

#: What each figure is, as results and reports state it.
DEFINITIONS = {
    "disentanglement": "first-order Sobol index of the condition: share of the feature's variance (trace of its "
    "covariance over independent draws of condition, picture, noise and caption) that is owed to the condition alone",
    "first": "first-order Sobol index of each input: its share of the variance alone",
    "total": "total Sobol index of each input: its share with all inputs in which it meets others; 1 minus that of an "
    "input is the feature's invariance to it",
    "r2.condition": "held-out R2 of a ridge probe, per position: the condition's pixels, averaged over each cell",
    "r2.noise": "held-out R2 of a ridge probe, per position: the noise in x_t, averaged over each cell",
    "r2.caption": "held-out R2 of a ridge probe on the feature's mean over positions: which words the caption has",
    "r2.score": "held-out R2 of a ridge probe, per position: the residual target - prior, a one-sample estimate of the "
    "likelihood score, averaged over each cell; far below 1 even for a perfect feature, as one sample is mostly chance",
    "cka": "linear CKA with the unbiased estimate of HSIC, over samples, of the two runs' features of the same layer",
    "intervals": "95%; bootstrap over held-out samples (probes) or pairs of them (Sobol indices), the same ones for "
    "both runs; half samples (CKA)",
    "mean over levels": "the mean of the figure over the noise levels, all of one resampling",
}


@dataclass(frozen=True)
class Reading:
    """One layer at one noise level.

    Attributes:
        errors: by target, the probe's squared error of each held-out sample, (N,).
        totals: the same for the mean of what it was fitted on; what there is to explain.
        penalties: by target, the probe's.
        distances: by name (see :func:`lisa.analyse.sensitivity.distances`), of each block, (M,).
        gram: inner products of the features of the held-out samples as they are, (N, N).
    """

    errors: Mapping[str, FloatArray]
    totals: Mapping[str, FloatArray]
    penalties: Mapping[str, float]
    distances: Mapping[str, FloatArray]
    gram: FloatArray


#: Of several readings: per figure and reading the arrays whose ratio of sums it is one minus, or is.
_Figure = Callable[[Reading], tuple[FloatArray, FloatArray]]


def figures(readings: Sequence[Reading], seed: int) -> dict[str, Any]:
    """All figures of readings of one layer (their means, if several), with intervals."""
    return _assembled(lambda pick, plain: _interval([_mean(readings, pick, plain)], seed, _count(readings, pick)))


def differences(ours: Sequence[Reading], theirs: Sequence[Reading], seed: int) -> dict[str, Any]:
    """The same figures of ``ours`` minus those of ``theirs``, paired: of the same samples in the same order."""

    def difference(pick: _Figure, plain: bool) -> Interval:
        parts = [_mean(ours, pick, plain), _mean(theirs, pick, plain)]
        return _interval(parts, seed, _count(ours, pick))

    return _assembled(difference)


def _assembled(interval: Callable[[_Figure, bool], Interval]) -> dict[str, Any]:
    def target(name: str) -> _Figure:
        return lambda reading: (reading.errors[name], reading.totals[name])

    def distance(name: str) -> _Figure:
        return lambda reading: (reading.distances[name], reading.distances[ALL])

    first = {name: interval(distance(f"not {name}"), False) for name in FACTORS}
    return {
        "disentanglement": first["condition"],
        "first": first,
        "total": {name: interval(distance(name), True) for name in FACTORS},
        "r2": {name: interval(target(name), False) for name in TARGETS},
    }


def _mean(readings: Sequence[Reading], pick: _Figure, plain: bool) -> Callable[[Any], FloatArray]:
    """Rows -> mean over readings of the ratio of sums (``plain``), or of one minus it."""
    columns = [pick(reading) for reading in readings]

    def statistic(rows: Any) -> FloatArray:
        ratio: FloatArray = np.mean([ratio_of_sums(above, below, rows) for above, below in columns], axis=0)
        return ratio if plain else 1 - ratio

    return statistic


def _count(readings: Sequence[Reading], pick: _Figure) -> int:
    return len(pick(readings[0])[0])


def _interval(parts: Sequence[Callable[[Any], FloatArray]], seed: int, count: int) -> Interval:
    def statistic(rows: Any) -> FloatArray:
        value = parts[0](rows)
        return value if len(parts) == 1 else value - parts[1](rows)

    return bootstrap(statistic, count, seed=seed)
