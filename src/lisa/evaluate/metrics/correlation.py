"""Correlation of two maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.evaluate.metrics.shapes import require_same_shape


def score(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Pearson's correlation of two maps of any shape, -1..1; where one is constant: 1 if both are, else 0.

    Raises:
        LisaError: maps of different size.
    """
    truth, made = np.asarray(truth, np.float64), np.asarray(made, np.float64)
    require_same_shape(truth, made)
    a, b = truth - truth.mean(), made - made.mean()
    energy = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if energy < 1e-12:
        return float(np.ptp(truth) < 1e-9 and np.ptp(made) < 1e-9)
    return float(np.clip((a * b).sum() / energy, -1, 1))
