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


def ratio(counts: Counts) -> float:
    """Numerators over denominators, mean over the classes that have any; NaN where none has."""
    above, below = counts
    there = below > 0
    return float(np.mean(above[there] / below[there])) if there.any() else float("nan")


def pooled(counts: Sequence[Counts], seed: int = 0, n: int = 1000, sets: int = 1) -> Interval:
    """:func:`ratio` of the sums over pictures, with a bootstrap interval over the pictures.

    Args:
        counts: of each picture, one set after the other.
        seed: of the bootstrap.
        n: of its resamples.
        sets: pictures per sample; the figure is then the mean over sets (:mod:`lisa.evaluate.sets`).
    """
    above, below = (np.stack(parts) for parts in zip(*counts, strict=True))
    pairs = list(zip(np.split(above, sets), np.split(below, sets), strict=True))

    def statistic(rows: IndexArray) -> FloatArray:
        drawn = [np.bincount(each, minlength=len(above) // sets) for each in rows.reshape(-1, rows.shape[-1])]
        ratios = [[ratio((each @ over, each @ under)) for over, under in pairs] for each in drawn]
        return np.asarray(ratios).mean(-1).reshape(rows.shape[:-1])

    return bootstrap(statistic, len(above) // sets, seed=seed, n=n)
