"""Tensors at the doors of networks that are kept in another precision."""

from __future__ import annotations

import torch
from torch import nn

from lisa.core.precision import as_stored, in_dtype_of, telling_parameter


def test_weights_that_are_whole_numbers_are_passed_over():
    """As those of quantised layers: a latent must not be rounded to their type."""
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, dtype=torch.bfloat16))
    network[0].weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    network[0].bias = None
    assert in_dtype_of(network, torch.rand(2)).dtype == torch.bfloat16
    assert in_dtype_of(network, torch.ones(2, dtype=torch.int64)).dtype == torch.int64
    with torch.autocast("cpu", torch.bfloat16):
        assert in_dtype_of(network, torch.rand(2)).dtype == torch.float32


def test_parameters_that_are_always_in_float32_are_passed_over():
    """As diffusers keeps some of a network in bfloat16, by the names of modules or of the parameters themselves."""
    network = nn.Sequential()
    network.add_module("norm", nn.LayerNorm(2))
    network.add_module("norm_out", nn.Linear(2, 2, dtype=torch.bfloat16))
    assert telling_parameter(network).dtype == torch.float32
    network._keep_in_fp32_modules = ["norm"]
    assert telling_parameter(network) is network.norm_out.weight
    assert in_dtype_of(network, torch.rand(2)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), as_stored(network):
        assert not torch.is_autocast_enabled("cpu")
    network._keep_in_fp32_modules = ["norm", "norm_out"]
    assert telling_parameter(network) is network.norm.weight, "nothing else tells"
    assert telling_parameter(nn.Identity()) is None
