"""Two by two cells of a latent as one token, as Flux and its kin pack them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) with even sides to tokens (B, h/2 w/2, 4 C), row by row.

    Within a token the channel counts first, then the row and the column of the cell.
    """
    return pixel_unshuffle(maps, 2).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The way back: tokens (B, N, 4 C) of a latent of ``size`` (h, w) to maps (B, C, h, w)."""
    batch, _, channels = tokens.shape
    return pixel_shuffle(tokens.transpose(1, 2).reshape(batch, channels, size[0] // 2, size[1] // 2), 2)
