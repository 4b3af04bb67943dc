"""Root mean square error of depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.evaluate.metrics.shapes import require_same_shape


def score(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Root mean square difference of depth maps (H, W) in 0..1: 0 is perfect, 1 the worst there is.

    Raises:
        LisaError: maps of different size.
    """
    truth, made = np.asarray(truth, np.float64), np.asarray(made, np.float64)
    require_same_shape(truth, made)
    return float(np.sqrt(np.mean((truth - made) ** 2)))
