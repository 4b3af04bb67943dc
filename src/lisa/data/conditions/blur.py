"""Gaussian blur."""

from __future__ import annotations

import numpy as np

from lisa.common.errors import need
from lisa.data.samples import ByteArray


def extract(image: ByteArray, *, sigma: float | None = None) -> ByteArray:
    """The picture blurred, uint8 (H, W, 3); ``sigma`` in pixels, by default 1/32 of the shorter side."""
    gaussian = need("skimage.filters", "conditions").gaussian

    width = min(image.shape[:2]) / 32 if sigma is None else sigma
    blurred = gaussian(image.astype(np.float32), sigma=width, channel_axis=-1, preserve_range=True)
    return np.clip(blurred + 0.5, 0, 255).astype(np.uint8)
