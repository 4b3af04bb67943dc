"""Linear CKA: whether two sets of features tell the same samples apart in the same way.

Kornblith et al., arXiv 1905.00414. With as few samples as an analysis has, the plain estimate is near one for any two
features of many numbers; the unbiased one of HSIC (Song et al., JMLR 13, 2012; for CKA: Nguyen, Raghu and Kornblith,
arXiv 2010.15327) is near zero for unrelated ones. It can be slightly negative.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError
from lisa.common.intervals import Interval

FloatArray = NDArray[np.float64]
MIN_SAMPLES = 4


def gram(features: NDArray[np.floating]) -> FloatArray:
    """Inner products (n, n) of the centred rows of ``features`` (n, F)."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    product: FloatArray = centred @ centred.T
    return product


def hsic(one: FloatArray, two: FloatArray) -> FloatArray:
    """The unbiased estimate of HSIC from inner products (..., n, n), n at least 4: (...)."""
    n = one.shape[-1]
    if n < MIN_SAMPLES:
        raise LisaError(f"HSIC of {n} samples", f"Give at least {MIN_SAMPLES}")
    others = 1 - np.eye(n)
    one, two = one * others, two * others
    rows_one, rows_two = one.sum(-1), two.sum(-1)
    crossed = (one * two).sum((-2, -1))
    totals = rows_one.sum(-1) * rows_two.sum(-1) / ((n - 1) * (n - 2))
    shared = 2 * (rows_one * rows_two).sum(-1) / (n - 2)
    estimate: FloatArray = (crossed + totals - shared) / (n * (n - 3))
    return estimate


def cka(one: FloatArray, two: FloatArray) -> FloatArray:
    """Linear CKA from inner products (..., n, n); NaN where one of the features does not vary."""
    product = hsic(one, one) * hsic(two, two)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(product > 0, hsic(one, two) / np.sqrt(product), np.nan)


def cka_interval(one: FloatArray, two: FloatArray, *, seed: int = 0, n: int = 200, level: float = 0.95) -> Interval:
    """CKA with an interval from half samples, drawn without replacement.

    A bootstrap would put samples beside copies of themselves, which HSIC takes for likeness. The spread of half samples
    is that of the whole set's estimate (Politis, Romano and Wolf, Subsampling, 1999: n/2 of n).
    """
    value, count = float(cka(one, two)), len(one)
    half = count // 2
    if half < MIN_SAMPLES or math.isnan(value):
        return Interval(value, -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    drawn = np.stack([generator.permutation(count)[:half] for _ in range(n)])
    picked = [matrix[drawn[:, :, None], drawn[:, None, :]] for matrix in (one, two)]
    values = cka(*picked)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(value, -math.inf, math.inf)
    # Around the whole set's own value: half samples lie a little off it.
    low, high = value + np.quantile(values - np.median(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
