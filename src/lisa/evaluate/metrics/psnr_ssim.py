"""Peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, need
from lisa.evaluate.metrics.shapes import require_same_shape

_RANGE = 255.0
_MOST_DB = 60.0  # rounding to 8 bits alone costs 58.9 dB: beyond it pictures are equal, and infinity spoils every mean


def psnr(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of arrays in 0..255, at most 60.

    Raises:
        LisaError: arrays of different size.
    """
    truth, made = np.asarray(truth, np.float64), np.asarray(made, np.float64)
    require_same_shape(truth, made)
    error = float(np.mean((truth - made) ** 2))
    return _MOST_DB if error == 0 else min(_MOST_DB, 10 * float(np.log10(_RANGE**2 / error)))


def ssim(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """Structural similarity (scikit-image, 7x7 windows) of uint8 (H, W, 3) or (H, W), at most 1.

    Raises:
        LisaError: pictures of different size, or smaller than the window.
    """
    structural_similarity = need("skimage.metrics", "conditions").structural_similarity

    truth, made = np.asarray(truth), np.asarray(made)
    require_same_shape(truth, made)
    if min(truth.shape[:2]) < 7:
        raise LisaError(f"structural similarity needs 7x7 pixels at least, the pictures are {truth.shape}")
    channels = -1 if truth.ndim == 3 else None
    return float(structural_similarity(truth, made, data_range=_RANGE, channel_axis=channels))
