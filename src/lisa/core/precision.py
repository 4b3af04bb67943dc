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
    parameter = telling_parameter(network)
    return tensor if parameter is None else tensor.to(parameter.dtype)


def as_stored(network: nn.Module) -> AbstractContextManager[None]:
    """No autocast while a network runs whose parameters are in 16 bits already; nothing for others.

    What such a network computes in float32 on purpose (Sana's linear attention, rotary positions) autocast would bring
    back to 16 bits. Outside autocast it computes what it computes in a pipeline of that type.
    """
    parameter = telling_parameter(network)
    if parameter is None or parameter.dtype not in _HALF:
        return nullcontext()
    return torch.autocast(parameter.device.type, enabled=False)


def telling_parameter(network: nn.Module) -> nn.Parameter | None:
    """A parameter of the type that ``network`` is stored in; None: it has none that are floating-point numbers.

    Quantised layers hold their weights as whole numbers. And what diffusers names in ``_keep_in_fp32_modules`` stays in
    float32 whatever the rest is in (Wan's first parameter is of that kind): it tells only where there is nothing else.
    """
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    lone = None
    for path, parameter in network.named_parameters():
        if parameter.is_floating_point():
            if kept.isdisjoint(path.split(".")):
                return parameter
            lone = parameter if lone is None else lone
    return lone
