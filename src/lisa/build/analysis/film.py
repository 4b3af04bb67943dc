"""Clips in an analysis: frames side by side in one map, so that whatever looks at maps looks at every frame."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lisa.data.samples import ByteArray


def film(maps: Tensor) -> Tensor:
    """Maps of clips (B, C, f, h, w) as (B, C, h, f w), frames from left to right. Maps of pictures as they are."""
    return maps.transpose(2, 3).flatten(3) if maps.ndim == 5 else maps


def picture_film(clip: ByteArray, frames: int) -> ByteArray:
    """A clip (F, H, W, C) as (H, f W, C), one picture for each of ``frames`` latent frames.

    A latent frame is one frame; or, where there are fewer of them, the first is the first alone and each of the others
    as many as the next, of which the mean is taken.
    """
    if frames != len(clip):
        groups = [clip[:1], *np.split(clip[1:], frames - 1)] if frames > 1 else [clip]
        clip = np.stack([(group.mean(0) + 0.5).astype(np.uint8) for group in groups])
    count, height, width, channels = clip.shape
    return np.ascontiguousarray(clip.transpose(1, 0, 2, 3).reshape(height, count * width, channels))
