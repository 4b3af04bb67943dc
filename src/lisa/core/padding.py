"""Sequences of different lengths in one tensor, so that they can be batched and cached; and out of it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lisa.common.errors import LisaError


def padded(sequences: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Sequences (n, C) of at most ``length`` each as one tensor (B, ``length``, C), zeros behind, and its mask.

    Raises:
        LisaError: one is longer.
    """
    longest = max(len(each) for each in sequences)
    if longest > length:
        raise LisaError(f"a sequence of {longest} does not fit into {length}")
    mask = torch.stack([torch.arange(length, device=each.device) < len(each) for each in sequences])
    return torch.stack([pad(each, (0, 0, 0, length - len(each))) for each in sequences]), mask


def unpadded(tensor: Tensor, mask: Tensor) -> list[Tensor]:
    """The way back; ``mask`` (B, L) of any type, true at the front of each row."""
    return [row[:length] for row, length in zip(tensor, mask.bool().sum(dim=1).tolist(), strict=True)]
