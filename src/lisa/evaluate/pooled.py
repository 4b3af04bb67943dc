"""Figures of a whole set that are ratios of sums over its pictures: PCK over joints, mIoU over classes, plain means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lisa.common.intervals import FloatArray, IndexArray, Interval, bootstrap

#: Of one picture: numerators (K,) and denominators (K,), one pair per class.
Counts = tuple[NDArray[np.float64], NDArray[np.float64]]


def single(value: float, of: float = 1.0) -> Counts:
    """A figure without classes: ``value`` out of ``of``."""
    return np.asarray([value], np.float64), np.asarray([of], np.float64)


def mean(values: Sequence[float]) -> Counts:
    """A figure that is one of single pictures: of several of one sample, the mean."""
    return single(float(np.mean(values)))


def summed(counts: Sequence[Counts]) -> Counts:
    """What was counted over several pictures of one sample."""
    above, below = (np.sum(parts, axis=0) for parts in zip(*counts, strict=True))
    return above, below


def ratio(counts: Counts) -> float:
    """Numerators over denominators, mean over the classes that have any; NaN where none has."""
    above, below = counts
    there = below > 0
    return float(np.mean(above[there] / below[there])) if there.any() else float("nan")


def pooled(counts: Sequence[Counts], seed: int = 0, n: int = 1000) -> Interval:
    """:func:`ratio` of the sums over pictures, with a bootstrap interval over the pictures."""
    above, below = (np.stack(parts) for parts in zip(*counts, strict=True))

    def statistic(rows: IndexArray) -> FloatArray:
        drawn = np.asarray([np.bincount(each, minlength=len(above)) for each in rows.reshape(-1, rows.shape[-1])])
        ratios = [ratio(pair) for pair in zip(drawn @ above, drawn @ below, strict=True)]
        return np.asarray(ratios).reshape(rows.shape[:-1])

    return bootstrap(statistic, len(above), seed=seed, n=n)
