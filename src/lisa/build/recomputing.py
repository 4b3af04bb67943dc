"""Activations that are computed again in the backward pass, so that they need not be kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from lisa.common.errors import LisaError


def recompute_activations(network: Any) -> None:
    """Gradient checkpointing as diffusers does it, and of modules of which it would keep the larger part.

    Those are the transformers over space and time of Stable Video Diffusion, of which diffusers recomputes the blocks
    over space, not those over time and what lies between both; and the embedding of the condition, whose first maps are
    as large as the pictures. Nothing else about the network changes, and no figure does.

    Raises:
        LisaError: this class cannot.
    """
    if not network._supports_gradient_checkpointing:
        raise LisaError(
            f"side.gradient_checkpointing: diffusers' {type(network).__name__} cannot recompute activations",
            "Set side.gradient_checkpointing=false",
        )
    network.enable_gradient_checkpointing()
    for module in network.modules():
        if isinstance(module, _whole()):
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # what is inside is part of the whole
            module.forward = _recomputed(module.forward)


def _whole() -> tuple[type[nn.Module], ...]:
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    return TransformerSpatioTemporalModel, ControlNetConditioningEmbedding


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return run
