"""The attention kernel that goes with the precision that a training computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """In bfloat16 on the CPU, torch's fused kernel takes twice as long as the same in its parts (torch 2.13), which
    hold the attention maps in memory.

    Around forward *and* backward passes: what is recomputed in the latter must come from the same kernel.
    """
    return sdpa_kernel(SDPBackend.MATH) if bf16 and device.type == "cpu" else nullcontext()
