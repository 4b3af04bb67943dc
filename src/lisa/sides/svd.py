"""``SVDControlNet`` (``lisa.networks``) beside Stable Video Diffusion's UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context
from lisa.sides.controlnet import ControlNetSide, embedding_channels
from lisa.sides.layers import zeros_like


class SVDControlNetSide(ControlNetSide):
    """See :class:`lisa.sides.base.SideNetwork`. Its features are maps of single frames, (B F, C, h, w)."""

    kind = "SVDControlNet"
    package = "lisa.networks"
    lora_targets = (*ControlNetSide.lora_targets, "ff_in.net.0.proj", "ff_in.net.2")  # over time
    original_names = None

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        freeze_attention_to_one_token(module)

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int, conditioning_channels: int = 3) -> SVDControlNetSide:
        """A copy of the main network's encoder, with a condition embedding that shrinks by ``latent_factor``.

        Raises:
            LisaError: the factor is not a power of two that diffusers' embedding can be built for.
        """
        from lisa.networks import SVDControlNet

        module = SVDControlNet.from_unet(network, conditioning_channels, embedding_channels(latent_factor))
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``: what :func:`lisa.core.injecting.injected` takes."""
        module = self.module
        return self.callee(
            in_dtype_of(module, torch.cat([x_t.transpose(1, 2), context["image_latents"]], dim=2)),
            t,
            in_dtype_of(module, context["encoder_hidden_states"]),
            context["added_time_ids"],  # the network casts them, after the sines
            in_dtype_of(module, condition.transpose(1, 2)),
            return_dict=False,
        )


def freeze_attention_to_one_token(network: nn.Module) -> None:
    """Freeze the queries and keys of attention to the conditioning frame's embedding, and the norms before them.

    It is one token, whose weight is 1 whatever they are: they would only get the noise of rounding for a gradient.
    """
    for block in network.modules():
        attention = getattr(block, "attn2", None)
        if isinstance(attention, nn.Module):
            for part in (block.norm2, attention.to_q, attention.to_k):
                part.requires_grad_(False)


def run_on_zeros(network: Any) -> tuple[int, int]:
    """A forward of an ``SVDControlNet`` on a clip of one frame; the (height, width) of its latent."""
    config, zeros = network.config, zeros_like(network)
    latent = 2 ** len(config.block_out_channels)
    pixels = latent * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    width = config.cross_attention_dim
    network(
        zeros(1, 1, config.in_channels, latent, latent),
        zeros(1),
        zeros(1, 1, width if isinstance(width, int) else width[0]),
        zeros(1, config.projection_class_embeddings_input_dim // config.addition_time_embed_dim),
        zeros(1, 1, config.conditioning_channels, pixels, pixels),
        return_dict=False,
    )
    return latent, latent
