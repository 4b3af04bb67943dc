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


def counts(truth: NDArray[Any], made: NDArray[Any], classes: int, void: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Intersections and unions of classes 0 .. classes - 1, each (classes,), for the IoU over a whole set of pictures.

    Args:
        truth: int (H, W); pixels that are ``void`` do not count.
        made: int (H, W).
        classes: how many.
        void: the label of no class.

    Raises:
        LisaError: maps of different size.
    """
    truth, made = np.asarray(truth), np.asarray(made)
    require_same_shape(truth, made)
    truth, made = truth[truth != void], made[truth != void]
    areas = [np.bincount(labels, minlength=classes)[:classes] for labels in (truth[truth == made], truth, made)]
    return areas[0].astype(np.float64), (areas[1] + areas[2] - areas[0]).astype(np.float64)
