"""Batches for the toy side network of ``tests/core``, and an aligner attached to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lisa.core import LikelihoodAligner, attach

NAMES = {"down.0": "zeros.0", "down.1": "zeros.1"}


def batch(size=(8, 6), samples=3, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target, prior = (torch.randn(samples, 4, *size, generator=generator) for _ in range(3))
    return x, target, prior, torch.tensor([0, 481, 999][:samples])


def attached(side: nn.Module, layer="down.1", **options) -> LikelihoodAligner:
    """Attached, with a decoder whose output is not zero: with zeros most comparisons are vacuous."""
    options.setdefault("dry_run", lambda: (side(torch.zeros(1, 4, 8, 6)), (8, 6))[1])
    aligner = attach(side, layer, out_channels=4, names=NAMES, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for decoder in aligner.decoders.values():
            decoder.out.weight.copy_(torch.randn(decoder.out.weight.shape, generator=generator) * 0.1)
            decoder.out.bias.fill_(0.3)
    return aligner
