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
    parameter = next(network.parameters(), tensor)
    return tensor.to(parameter.dtype)
