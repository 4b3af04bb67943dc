"""A module in another floating-point type, as ``from_pretrained(dtype=...)`` would have loaded it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def cast(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move ``module`` to ``device`` and its weights to ``dtype`` (None: as they are), but for what stays in float32.

    That is buffers that are computed, not saved (the frequencies of rotary positions, off by up to 0.4% in bfloat16),
    and parameters that the class names in ``_keep_in_fp32_modules`` (transformers means in float16 alone, in which T5's
    ``wo`` overflows; diffusers in bfloat16, too) or in ``_keep_in_fp32_modules_strict``.
    """
    buffers = [(owner, name, owner._buffers[name]) for owner, name in _computed_buffers(module)]
    kept = list(_kept_parameters(module, dtype))
    before = [parameter.data for parameter in kept]
    nn.Module.to(module, device, dtype)  # diffusers' own to() warns about nothing with every cast
    for owner, name, buffer in buffers:
        owner._buffers[name] = buffer.to(device) if buffer is not None else None
    for parameter, data in zip(kept, before, strict=True):
        parameter.data = data.to(device, torch.float32)


def _computed_buffers(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(owner, name) of buffers that ``state_dict()`` leaves out."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if name in owner._non_persistent_buffers_set and isinstance(buffer, Tensor) and buffer.is_floating_point():
                yield owner, name


def _kept_parameters(module: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Parameter]:
    if dtype not in (torch.float16, torch.bfloat16):
        return
    names = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16 or _is_of_diffusers(module):
        names |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for path, parameter in module.named_parameters():
        if any(re.search(rf"(^|\.){re.escape(name)}(\.|$)", path) for name in names):
            yield parameter


def _is_of_diffusers(module: nn.Module) -> bool:
    from diffusers import ModelMixin

    return isinstance(module, ModelMixin)
