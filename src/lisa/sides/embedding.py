"""How the condition embedding of a new ControlNet begins.

diffusers' ``ControlNetConditioningEmbedding`` (and the original's ``input_hint_block``) starts with torch's default
weights, under which each of its convolutions hands on about a third of what differs between conditions: of sparse
strokes less than a thousandth is left before the last one. Until training has undone that, nothing of the condition
reaches the side network: control stays at zero for long, and then sets in suddenly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError

#: Conditions that the trainer measures.
ENOUGH = 64


def find_condition_embedding(network: nn.Module) -> Any | None:
    """The convolutions through which the conditions of a side network come in; None where they come in otherwise."""
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    return next((each for each in network.modules() if isinstance(each, ControlNetConditioningEmbedding)), None)


def condition_embedding(network: nn.Module) -> Any:
    """The same.

    Raises:
        LisaError: it has none: its conditions come in as latents, or through a network of its own.
    """
    if (found := find_condition_embedding(network)) is not None:
        return found
    raise LisaError(
        f"{type(network).__name__} has no condition embedding made of convolutions that could start in another way",
        "Leave side.condition_init at default",
    )


@torch.no_grad()
def init_condition_embedding(network: nn.Module, conditions: Tensor) -> None:
    """Start the condition embedding of a new ControlNet so that what differs between conditions comes through.

    Layer by layer (LSUV: Mishkin and Matas, arXiv 1511.06422): Kaiming weights without biases, each convolution scaled
    until its outputs differ between these conditions by a standard deviation of 1. That is taken between conditions at
    each place, not over all values, since a colour that all of them share tells nothing. The last convolution stays
    zero: a new side network still changes nothing.

    Args:
        network: ``ControlNetModel``, ``ControlNetUnionModel``, ``SVDControlNet``, or what holds the same embedding.
        conditions: (N, C, H, W), 0..1, as the network is given them; N >= 2, some dozens of the training set.

    Raises:
        LisaError: the network has no such embedding, or the conditions do not differ.
    """
    embedding = condition_embedding(network)
    weight = embedding.conv_in.weight
    hidden = conditions.to(weight.device, weight.dtype)
    for convolution in (embedding.conv_in, *embedding.blocks):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        spread = convolution(hidden).var(dim=0, correction=0).mean().sqrt()
        if not spread > 0:
            raise LisaError(
                f"{len(conditions)} conditions that do not differ cannot tell how the condition embedding should start",
                "Give some dozens of different ones, or leave side.condition_init at default",
            )
        convolution.weight.div_(spread)
        hidden = nn.functional.silu(convolution(hidden))
