"""Tensors at the doors of networks that are kept in another precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


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


def as_stored(network: nn.Module) -> AbstractContextManager[None]:
    """No autocast while a network runs whose parameters are in 16 bits already; nothing for others.

    What such a network computes in float32 on purpose (Sana's linear attention, rotary positions) autocast would bring
    back to 16 bits. Outside autocast it computes what it computes in a pipeline of that type.
    """
    parameter = next((each for each in network.parameters() if each.is_floating_point()), None)
    if parameter is None or parameter.dtype not in _HALF:
        return nullcontext()
    return torch.autocast(parameter.device.type, enabled=False)
