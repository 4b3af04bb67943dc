"""Low resolution: means of blocks, shown at full size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray


def block_mean(image: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Mean over blocks of ``factor`` x ``factor`` pixels; both sides of ``image`` (H, W, 3) are multiples of it."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels).astype(np.float32)
    return blocks.mean((1, 3), dtype=np.float32)


def small(image: ByteArray, factor: int = 8) -> NDArray[np.float32]:
    """Block means of uint8 (H, W, 3), 0..255; the last rows and columns are repeated where a block is not full."""
    rows, columns = -image.shape[0] % factor, -image.shape[1] % factor
    return block_mean(np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge"), factor)


def extract(image: ByteArray, *, factor: int = 8) -> ByteArray:
    """Every block filled with its mean, uint8 (H, W, 3)."""
    means = small(image, factor).repeat(factor, 0).repeat(factor, 1)
    return np.clip(means + 0.5, 0, 255).astype(np.uint8)[: image.shape[0], : image.shape[1]]
