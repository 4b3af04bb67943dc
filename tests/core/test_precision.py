"""Tensors at the doors of networks that are kept in another precision."""

from __future__ import annotations

import torch
from torch import nn

from lisa.core.precision import in_dtype_of


def test_weights_that_are_whole_numbers_are_passed_over():
    """As those of quantised layers: a latent must not be rounded to their type."""
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, dtype=torch.bfloat16))
    network[0].weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    network[0].bias = None
    assert in_dtype_of(network, torch.rand(2)).dtype == torch.bfloat16
    assert in_dtype_of(network, torch.ones(2, dtype=torch.int64)).dtype == torch.int64
    with torch.autocast("cpu", torch.bfloat16):
        assert in_dtype_of(network, torch.rand(2)).dtype == torch.float32
