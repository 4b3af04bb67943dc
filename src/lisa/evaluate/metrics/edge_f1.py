"""F1 of edge pixels, with one pixel of tolerance or with none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.evaluate.metrics.shapes import require_same_shape

BoolArray = NDArray[np.bool_]


def score(truth: BoolArray, made: BoolArray) -> float:
    """F1 of the edge masks bool (H, W).

    An edge pixel made counts as right if a true one lies in the 3x3 pixels around it, a true one as found if a made
    one does: the harmonic mean of the two shares. 1 if neither picture has an edge, 0 if only one has.

    Raises:
        LisaError: masks of different size.
    """
    truth, made = np.asarray(truth, bool), np.asarray(made, bool)
    require_same_shape(truth, made)
    if not truth.any() or not made.any():
        return float(truth.any() == made.any())
    precision = float(thicken(truth)[made].mean())
    recall = float(thicken(made)[truth].mean())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def exact(truth: BoolArray, made: BoolArray) -> float:
    """The same without tolerance: F1 of the pixels of bool (H, W), twice what both have over the sum of what each has.

    0 if neither has any: as torchmetrics and with it ControlNet++ have it, other than :func:`score`.

    Raises:
        LisaError: masks of different size.
    """
    truth, made = np.asarray(truth, bool), np.asarray(made, bool)
    require_same_shape(truth, made)
    total = int(truth.sum()) + int(made.sum())
    return 0.0 if total == 0 else 2 * int((truth & made).sum()) / total


def thicken(mask: BoolArray) -> BoolArray:
    """Every pixel with a true one among its 3x3 neighbours."""
    rows, columns = mask.shape
    padded = np.pad(mask, 1)
    shifts = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.logical_or.reduce(shifts)
