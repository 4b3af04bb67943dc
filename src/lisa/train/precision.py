"""The precision that a training computes in: accelerate's autocast, and the attention kernel that goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def mixed_precision(accelerator: Accelerator) -> Iterator[None]:
    """What every pass of a training runs in: ``train.mixed_precision``, as accelerate's autocast has it."""
    with accelerator.autocast(), attention(accelerator.device, accelerator.mixed_precision == "bf16"):
        yield


def attention(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """In bfloat16 on the CPU, torch's fused kernel takes twice as long as the same in its parts (torch 2.13)."""
    return sdpa_kernel(SDPBackend.MATH) if bf16 and device.type == "cpu" else nullcontext()
