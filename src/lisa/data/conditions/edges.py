"""Soft edges: the magnitude of the luminance's gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import need
from lisa.data.conditions.gray import grey_picture, luminance
from lisa.data.samples import ByteArray

_FULL = 0.25  # magnitude drawn white: a fixed scale keeps weak pictures weak, where a per-picture one would not


def edge_strength(image: ByteArray, *, sigma: float = 1.0) -> NDArray[np.float64]:
    """Strength of edges of uint8 (H, W, 3): float (H, W), 0..1."""
    filters = need("skimage.filters", "conditions")
    magnitude = filters.scharr(filters.gaussian(luminance(image), sigma=sigma))
    return np.clip(magnitude / _FULL, 0, 1).astype(np.float64)


def extract(image: ByteArray, *, sigma: float = 1.0) -> ByteArray:
    """Bright edges on black, uint8 (H, W, 3)."""
    return grey_picture(edge_strength(image, sigma=sigma))
