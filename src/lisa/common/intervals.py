"""A value with its interval of confidence: percentile bootstrap and Student's t. Needs numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lisa.common.errors import LisaError

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]
#: A statistic of a sample: takes indices ``(..., N)`` into it and returns one number per leading position ``(...)``.
Statistic = Callable[[IndexArray], Any]

_INDICES_AT_ONCE = 2_000_000  # bounds the memory of a bootstrap over many samples


@dataclass(frozen=True)
class Interval:
    """A value and the interval ``low`` .. ``high`` around it. An end that is not known is infinite."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def to_json(self) -> dict[str, float | None]:
        """``{"value": ..., "low": ..., "high": ...}``; infinite or not a number: None, as JSON has neither."""
        return {name: _finite_or_none(getattr(self, name)) for name in ("value", "low", "high")}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(statistic: Statistic, count: int, *, seed: int = 0, n: int = 1000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of any statistic of ``count`` samples.

    Args:
        statistic: maps indices ``(..., count)`` to values ``(...)``; called once on ``0 .. count - 1`` for the value,
            and on resampled indices (with replacement) for the interval. Resamples that give NaN are left out.
        count: number of independent samples, at least 1. From one sample no interval can be known: it is infinite.
        seed: of the resampling; the same seed gives the same interval.
        n: number of resamples.
        level: of confidence, in (0, 1).

    Raises:
        LisaError: there is no sample.
    """
    _check(count, level)
    value = float(statistic(np.arange(count, dtype=np.int64)))
    if count == 1:
        return Interval(value, -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    rows = max(1, _INDICES_AT_ONCE // count)
    parts = []
    for start in range(0, n, rows):
        drawn = generator.integers(0, count, size=(min(rows, n - start), count), dtype=np.int64)
        parts.append(np.asarray(statistic(drawn), dtype=np.float64))
    resampled = np.concatenate(parts)
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return Interval(value, -math.inf, math.inf)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_mean(values: ArrayLike, seed: int = 0, n: int = 1000, level: float = 0.95) -> Interval:
    """Bootstrap interval of the mean of ``values`` (N,)."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    return bootstrap(lambda rows: array[rows].mean(axis=-1), len(array), seed=seed, n=n, level=level)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, n: int = 1000, level: float = 0.95
) -> Interval:
    """Bootstrap interval of ``sum(numerators) / sum(denominators)``, the pairs (N,), (N,) resampled together."""
    above = np.asarray(numerators, dtype=np.float64).reshape(-1)
    below = np.asarray(denominators, dtype=np.float64).reshape(-1)
    if above.shape != below.shape:
        raise LisaError(f"{len(above)} numerators and {len(below)} denominators", "Give one of each per sample")
    return bootstrap(lambda rows: ratio_of_sums(above, below, rows), len(above), seed=seed, n=n, level=level)


def ratio_of_sums(numerators: FloatArray, denominators: FloatArray, rows: IndexArray) -> FloatArray:
    """``sum(numerators[rows]) / sum(denominators[rows])`` over the last axis; NaN where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerators[rows].sum(axis=-1) / denominators[rows].sum(axis=-1)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def t_interval(values: Sequence[float] | FloatArray, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent ``values`` (one per seed, say).

    Raises:
        LisaError: there is no value.
    """
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    _check(len(array), level)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = _t_quantile(len(array) - 1, level) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)


def _t_quantile(freedom: int, level: float) -> float:
    """The t with P(|T| < t) = level, by bisection on the angle atan(t / sqrt(freedom)), where everything is bounded."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(freedom, middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _t_probability(freedom: int, angle: float) -> float:
    """P(|T| < sqrt(freedom) tan(angle)), by the finite series for whole degrees (Abramowitz & Stegun 26.7.3-4)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _check(count: int, level: float) -> None:
    if count < 1:
        raise LisaError("an interval of no samples was asked for", "Give at least one sample")
    if not 0 < level < 1:
        raise LisaError(f"a confidence level of {level}", "Give one between 0 and 1, such as 0.95")


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None
