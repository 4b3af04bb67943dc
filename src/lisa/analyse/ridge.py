"""Linear probes: ridge regression in closed form, from sums alone, so that features are never kept.

A probe (Alain and Bengio, arXiv 1610.01644) tells what can be read off a feature by a linear map. Inputs are
standardised, so that one grid of penalties suits features of any scale; the penalty is chosen by inner validation.

What features and targets have in common in all samples is left out, position by position: a network knows where it is
(by its padding, or an embedding of positions), and from that alone the mean picture could be read.
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
    """What ridge regression needs to know of ``x`` (B, P, d) and ``y`` (B, P, m): B samples at P positions.

    Attributes:
        count: B.
        x: sum of x over the samples, (P, d); ``y`` the same, (P, m).
        xx: sum of x^T x over samples and positions, (d, d); ``xy``: of x^T y, (d, m); ``yy``: of y^2, (m,).
    """

    count: float
    x: FloatArray
    y: FloatArray
    xx: FloatArray
    xy: FloatArray
    yy: FloatArray

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating]) -> Sums:
        """Of features ``x`` (B, P, d) and targets ``y`` (B, P, m)."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        rows = x.reshape(-1, x.shape[-1])
        crossed = rows.T @ rows, rows.T @ y.reshape(len(rows), y.shape[-1])
        return cls(float(len(x)), x.sum(0), y.sum(0), *crossed, np.square(y).sum((0, 1)))

    def about(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``xx``, ``xy`` and ``yy`` of the distances from ``x`` (P, d) and ``y`` (P, m)."""
        xx = self.xx - self.x.T @ x - x.T @ self.x + self.count * x.T @ x
        xy = self.xy - self.x.T @ y - x.T @ self.y + self.count * x.T @ y
        return xx, xy, self.yy - 2 * (self.y * y).sum(0) + self.count * np.square(y).sum(0)

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(*(ours - theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Probe:
    """``y = x weight + bias``, the bias of each position.

    Attributes:
        weight: (d, m), the same at all positions.
        bias: (P, m).
        mean: of y in the data it was fitted on, (P, m): what R2 compares with.
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
    loss = np.zeros((len(PENALTIES), total.y.shape[-1]))
    for fold in folds:
        rest = total - fold
        xx, xy, yy = fold.about(rest.x / rest.count, rest.y / rest.count)
        for number, weight in enumerate(_weights(rest)):
            loss[number] += yy - 2 * (weight * xy).sum(0) + (weight * (xx @ weight)).sum(0)
    probes, final = {}, _weights(total)
    mean_x, mean_y = total.x / total.count, total.y / total.count
    for name, outputs in groups.items():
        best = int(loss[:, outputs].sum(1).argmin())
        weight, mean = final[best][:, outputs], mean_y[:, outputs]
        probes[name] = Probe(weight, mean - mean_x @ weight, mean, PENALTIES[best])
    return probes


def _weights(sums: Sums) -> list[FloatArray]:
    """For each penalty: one eigendecomposition of the inputs' correlations serves all of them.

    Within positions: what is the same in all samples, as the mark of a position is, tells nothing of a sample.
    """
    rows = sums.count * len(sums.x)
    xx, xy, _ = (each / rows for each in sums.about(sums.x / sums.count, sums.y / sums.count))
    deviation = np.sqrt(np.clip(np.diag(xx), 0, None))
    # An input that never changes tells nothing; rounding must not blow it up.
    live = deviation > 1e-6 * np.sqrt(np.clip(np.diag(sums.xx) / rows, 1e-300, None))
    scale = np.where(live, 1 / np.where(live, deviation, 1), 0)
    values, vectors = np.linalg.eigh(xx * np.outer(scale, scale))
    projected = vectors.T @ (xy * scale[:, None])
    return [
        scale[:, None] * (vectors @ (projected / (np.clip(values, 0, None) + penalty)[:, None]))
        for penalty in PENALTIES
    ]
