"""How the condition embedding of a new ControlNet begins.

diffusers' ``ControlNetConditioningEmbedding`` (and the original's ``input_hint_block``) starts with torch's default
weights, under which each of its convolutions hands on about a third of what differs between conditions: of sparse
strokes a ten-thousandth is left at its end. Until training has undone that, nothing of the condition reaches the side
network: control stays at zero for long, and then sets in suddenly. With weights that keep the variance (He et al.,
arXiv 1502.01852) it sets in several times sooner; docs/evidence.md has the figures. The last convolution stays zero:
a new side network still changes nothing.
"""

from __future__ import annotations

from torch import nn

from lisa.common.errors import LisaError
from lisa.sides.base import SideNetwork


def condition_embedding(side: SideNetwork) -> nn.Module:
    """The convolutions through which a side network's conditions come in.

    Raises:
        LisaError: it has none: its conditions come in as latents, or through a network of its own.
    """
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    for module in side.module.modules():
        if isinstance(module, ControlNetConditioningEmbedding):
            return module
    raise LisaError(
        f"side.condition_init=kaiming: {side.kind} has no condition embedding made of convolutions",
        "Leave side.condition_init at default",
    )


def keep_variance(side: SideNetwork) -> None:
    """Start the condition embedding with weights that keep the variance of what comes in, and without biases.

    Raises:
        LisaError: see :func:`condition_embedding`.
    """
    embedding = condition_embedding(side)
    for convolution in (embedding.conv_in, *embedding.blocks):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
