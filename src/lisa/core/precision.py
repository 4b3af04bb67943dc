"""Tensors at the doors of networks that are kept in another precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_dtype_of(network: nn.Module, tensor: Tensor) -> Tensor:
    """``tensor`` in the floating-point type of ``network``'s parameters; unchanged under autocast, which casts itself.

    A frozen network in bf16 beside a side network in fp32 is the usual case, and sampling and evaluation may run
    outside autocast.
    """
    if torch.is_autocast_enabled(tensor.device.type) or not tensor.is_floating_point():
        return tensor
    # Quantised layers hold their weights as whole numbers.
    parameter = next((each for each in network.parameters() if each.is_floating_point()), tensor)
    return tensor.to(parameter.dtype)
