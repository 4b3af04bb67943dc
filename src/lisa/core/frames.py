"""Clips frame by frame: frames folded into the batch, so that a decoder of pictures reads them; and out of it again."""

from __future__ import annotations

from torch import Tensor

from lisa.common.errors import LisaError

#: Pixels that an autoencoder takes at once: 4 frames of 576x1024. Stable Video Diffusion's takes some 9 GiB to decode
#: them in float32, and 56 for a whole clip of 25.
_PIXELS = 4 * 576 * 1024


def frames_together(height: int, width: int) -> int:
    """How many frames of that many pixels an autoencoder is to be given at once, at least 1."""
    return max(1, _PIXELS // (height * width))


def fold(clips: Tensor) -> Tensor:
    """Clips (B, C, f, h, w) to their frames, one after the other: (B f, C, h, w). Anything else as it is."""
    return clips.transpose(1, 2).flatten(0, 1) if clips.ndim == 5 else clips


def unfold(frames: Tensor, count: int) -> Tensor:
    """The way back: (B f, C, h, w) of clips of ``count`` frames to (B, C, f, h, w)."""
    return frames.reshape(-1, count, *frames.shape[1:]).transpose(1, 2)


def fold_feature(feature: Tensor, batch: int, frames: int, layer: str) -> Tensor:
    """A feature of clips as the maps (B f, C, h, w) or the tokens (B f, n, C) of their frames.

    Args:
        feature: maps (B, C, f, h, w) or (B f, C, h, w), or tokens (B, f n, C) in the order (t, h, w).
        batch: clips, B.
        frames: of each, f; 1 for pictures.
        layer: what errors call it.

    Raises:
        LisaError: it is of other clips, or of clips of another length.
    """
    length = feature.shape[2] if feature.ndim == 5 else frames
    if feature.ndim == 5:
        folded = fold(feature)
    elif feature.ndim == 3 and feature.shape[0] == batch and feature.shape[1] % frames == 0:
        folded = feature.reshape(batch * frames, feature.shape[1] // frames, feature.shape[2])
    else:
        folded = feature
    if folded.shape[0] == batch * frames and length == frames:
        return folded
    if frames == 1:
        raise LisaError(
            f"the feature of layer {layer!r} is of {folded.shape[0]} samples, the target of {batch}",
            "Run the side network on exactly the samples that the aligner is called with",
        )
    raise LisaError(
        f"the feature of layer {layer!r}, {tuple(feature.shape)}, is not of {batch} clips of {frames} frames",
        "Run the side network on exactly the clips that the aligner is called with; maps are (B, C, f, h, w) or "
        "(B f, C, h, w), tokens (B, f n, C)",
    )
