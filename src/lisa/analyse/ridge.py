"""Linear probes: ridge regression in closed form, from sums alone, so that features are never kept.

A probe (Alain and Bengio, arXiv 1610.01644) tells what can be read off a feature by a linear map. Inputs are
standardised, so that one grid of penalties suits features of any scale; the penalty is chosen by inner validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError

FloatArray = NDArray[np.float64]
#: Of the penalty on standardised inputs, per row of the data.
PENALTIES = tuple(10.0**power for power in range(-6, 4))


@dataclass(frozen=True)
class Sums:
    """What ridge regression needs to know of rows ``x`` (n, d) and ``y`` (n, m).

    Attributes:
        count: n.
        x: sum of x, (d,); ``y`` the same, (m,).
        xx: x^T x, (d, d); ``xy``: x^T y, (d, m); ``yy``: sum of y^2, (m,).
    """

    count: float
    x: FloatArray
    y: FloatArray
    xx: FloatArray
    xy: FloatArray
    yy: FloatArray

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating]) -> Sums:
        """Of rows ``x`` (n, d) and ``y`` (n, m)."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        return cls(float(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y, np.square(y).sum(0))

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(*(ours - theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Probe:
    """``y = x weight + bias``.

    Attributes:
        weight: (d, m).
        bias: (m,).
        mean: of y in the data it was fitted on, (m,): what R2 compares with.
        penalty: the chosen one of :data:`PENALTIES`.
    """

    weight: FloatArray
    bias: FloatArray
    mean: FloatArray
    penalty: float

    def errors(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
        """Per sample (B,), summed over positions and outputs: squared error, and squared distance from the mean.

        Args:
            x: (B, P, d), P positions of each of B samples.
            y: (B, P, m).
        """
        predicted = x.astype(np.float64) @ self.weight + self.bias
        return np.square(y - predicted).sum((1, 2)), np.square(y - self.mean).sum((1, 2))


def fit_probes(folds: Sequence[Sums], groups: Mapping[str, slice]) -> dict[str, Probe]:
    """A probe for each group of outputs, each with the penalty that predicts left-out folds best.

    Args:
        folds: sums of disjoint sets of samples, at least two.
        groups: name -> which outputs.

    Raises:
        LisaError: fewer than two folds.
    """
    if len(folds) < 2:
        raise LisaError(f"a penalty cannot be chosen on {len(folds)} fold", "Give at least two")
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    loss = np.zeros((len(PENALTIES), len(total.y)))
    for fold in folds:
        solutions = _solutions(total - fold)
        loss += np.stack([_squared_error(fold, *solution) for solution in solutions])
    probes, final = {}, _solutions(total)
    for name, outputs in groups.items():
        best = int(loss[:, outputs].sum(1).argmin())
        weight, bias = final[best]
        mean = total.y[outputs] / total.count
        probes[name] = Probe(weight[:, outputs], bias[outputs], mean, PENALTIES[best])
    return probes


def _solutions(sums: Sums) -> list[tuple[FloatArray, FloatArray]]:
    """(weight, bias) for each penalty: one eigendecomposition of the inputs' correlations serves all of them."""
    mean_x, mean_y = sums.x / sums.count, sums.y / sums.count
    covariance = sums.xx / sums.count - np.outer(mean_x, mean_x)
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    # An input that never changes tells nothing; rounding must not blow it up.
    live = deviation > 1e-6 * np.sqrt(np.clip(np.diag(sums.xx) / sums.count, 1e-300, None))
    scale = np.where(live, 1 / np.where(live, deviation, 1), 0)
    values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
    projected = vectors.T @ ((sums.xy / sums.count - np.outer(mean_x, mean_y)) * scale[:, None])
    solutions = []
    for penalty in PENALTIES:
        weight = scale[:, None] * (vectors @ (projected / (np.clip(values, 0, None) + penalty)[:, None]))
        solutions.append((weight, mean_y - mean_x @ weight))
    return solutions


def _squared_error(sums: Sums, weight: FloatArray, bias: FloatArray) -> FloatArray:
    """``sum (y - x weight - bias)^2`` per output, from the sums alone."""
    quadratic = np.einsum("dm,de,em->m", weight, sums.xx, weight, optimize=True)
    crossed = np.einsum("dm,dm->m", weight, sums.xy) + bias * sums.y
    return sums.yy - 2 * crossed + quadratic + 2 * bias * (sums.x @ weight) + sums.count * np.square(bias)
