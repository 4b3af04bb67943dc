"""Low resolution: means of blocks, shown at full size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray
from lisa.data.scenes import block_mean


def small(image: ByteArray, factor: int = 8) -> NDArray[np.float32]:
    """Block means of uint8 (H, W, 3), 0..255; the last rows and columns are repeated where a block is not full."""
    rows, columns = -image.shape[0] % factor, -image.shape[1] % factor
    return block_mean(np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge"), factor)


def extract(image: ByteArray, *, factor: int = 8) -> ByteArray:
    """Every block filled with its mean, uint8 (H, W, 3)."""
    means = small(image, factor).repeat(factor, 0).repeat(factor, 1)
    return np.clip(means + 0.5, 0, 255).astype(np.uint8)[: image.shape[0], : image.shape[1]]
