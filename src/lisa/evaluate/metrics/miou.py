"""Mean intersection over union of two label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.evaluate.metrics.shapes import require_same_shape


def score(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Intersection over union of integer label maps (H, W), mean over the classes that occur in either.

    Raises:
        LisaError: maps of different size.
    """
    truth, made = np.asarray(truth), np.asarray(made)
    require_same_shape(truth, made)
    shares = []
    for label in np.union1d(truth, made):
        here, there = truth == label, made == label
        shares.append((here & there).sum() / (here | there).sum())
    return float(np.mean(shares))
