"""Share of shapes that are where the strokes of the skeleton put them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.evaluate.metrics.shapes import require_same_shape

_WITHIN = 0.1  # of the picture's longer side
_LEAST_AREA, _MOST_AREA = 0.25, 4.0  # of the true area: stray pixels, or a flooded background, are not the shape


def score(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Share of the labels above 0 in ``truth`` whose centre in ``made`` is within 0.1 of the side.

    The centre is the median of the pixels' coordinates: a few stray pixels of the same colour do not move it. A label
    whose area is less than a quarter or more than four times the true one counts as missing. 1 if there are no shapes.

    Args:
        truth: int (H, W), 0 is the background.
        made: the same.

    Raises:
        LisaError: maps of different size.
    """
    truth, made = np.asarray(truth), np.asarray(made)
    require_same_shape(truth, made)
    labels = [label for label in np.unique(truth) if label > 0]
    return float(np.mean([_found(truth == label, made == label) for label in labels])) if labels else 1.0


def _found(truth: NDArray[np.bool_], made: NDArray[np.bool_]) -> bool:
    if not _LEAST_AREA * truth.sum() <= made.sum() <= _MOST_AREA * truth.sum():
        return False
    offset = np.median(np.argwhere(truth), axis=0) - np.median(np.argwhere(made), axis=0)
    return bool(np.hypot(*offset) <= _WITHIN * max(truth.shape))
