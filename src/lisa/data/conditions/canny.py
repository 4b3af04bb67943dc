"""Thin binary edges by Canny's detector (scikit-image)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import need
from lisa.data.conditions.gray import grey_picture, luminance
from lisa.data.samples import ByteArray


def edge_mask(image: ByteArray, *, sigma: float = 1.0, low: float = 0.1, high: float = 0.2) -> NDArray[np.bool_]:
    """Edges of uint8 (H, W, 3) as bool (H, W).

    Args:
        image: the picture.
        sigma: of the Gaussian smoothing, in pixels.
        low: lower threshold of the gradient's magnitude, for luminance 0..1.
        high: upper threshold.
    """
    canny = need("skimage.feature", "conditions").canny

    mask: NDArray[np.bool_] = canny(luminance(image), sigma=sigma, low_threshold=low, high_threshold=high)
    return mask


def extract(image: ByteArray, *, sigma: float = 1.0, low: float = 0.1, high: float = 0.2) -> ByteArray:
    """White edges on black, uint8 (H, W, 3)."""
    return grey_picture(edge_mask(image, sigma=sigma, low=low, high=high).astype(np.float32))
