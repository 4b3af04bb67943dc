"""Luminance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray

_WEIGHTS = np.asarray([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709


def luminance(image: ByteArray) -> NDArray[np.float32]:
    """Luma of uint8 (H, W, 3): float32 (H, W), 0..1."""
    values: NDArray[np.float32] = image.astype(np.float32) @ _WEIGHTS / np.float32(255)
    return values


def grey_picture(values: NDArray[np.floating]) -> ByteArray:
    """Values (H, W), 0..1, as a grey picture uint8 (H, W, 3)."""
    levels = np.clip(np.asarray(values) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, -1)


def extract(image: ByteArray) -> ByteArray:
    """Luminance in all three channels, uint8 (H, W, 3)."""
    return grey_picture(luminance(image))
