"""Stable Diffusion 1.x and 2.x with ``ControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.stable_diffusion import load_stable_diffusion
from lisa.pairs.base import CONFORMANCE, ORIGINAL_NAMES, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_depth
from lisa.processes.ddpm import DDPM_PREDICTIONS
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.controlnet import ControlNetSide

#: Why the depth of a side network of a UNet cannot be chosen.
UNET_DEPTH = "it is made of the main network's down and middle blocks"


def check_controlnet_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another UNet.

    Raises:
        LisaError: latents, text width, blocks or the condition's size differ; the message names both.
    """
    check_same(main, side, ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"))
    ours, theirs = main.network.config, side.module.config
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        value = getattr(theirs, name, None)
        if value is not None and value != getattr(ours, name, None):
            raise misfit(main, f"it has {name}={value!r}, so it needs more than the main network is given")
    factor = 2 ** (len(theirs.conditioning_embedding_out_channels) - 1)
    if factor != main.latent_factor:
        raise misfit(main, f"it shrinks conditions by {factor}, the main network's latents by {main.latent_factor}")
    if theirs.conditioning_channels % 3:
        raise misfit(main, f"it takes conditions of {theirs.conditioning_channels} channels, pictures have 3")


def make_controlnet(main: MainNetwork, options: SideOptions) -> ControlNetSide:
    """A new ControlNet; see :meth:`ControlNetSide.from_main`.

    Raises:
        LisaError: a depth was asked for, or no ControlNet can be made for this network.
    """
    refuse_depth(options, ControlNetSide.kind, UNET_DEPTH)
    return ControlNetSide.from_main(main.network, main.latent_factor, options.condition_channels)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    components = main.pipeline_components()
    return StableDiffusionControlNetPipeline(
        **components, controlnet=module, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _reference() -> ControlNetSide:
    """Stable Diffusion 1.5 is what diffusers' defaults describe, but for the width of the text."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        return ControlNetSide(ControlNetModel(cross_attention_dim=768))


SD_CONTROLNET = PairSpec(
    name="sd-controlnet",
    main_kind="UNet2DConditionModel",
    side_kind="ControlNetModel",
    load_main=load_stable_diffusion,
    make_side=make_controlnet,
    load_side=ControlNetSide.from_folder,
    check_fit=check_controlnet_fits,
    pipeline=_pipeline,
    pipeline_name="StableDiffusionControlNetPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=True,
    shared="down and middle blocks",
    default_layer="down.5",
    example="Stable Diffusion 1.5",
    reference_side=_reference,
    verified_by=(*CONFORMANCE, "the embedded tiny-sd, trained and sampled", ORIGINAL_NAMES, TOGETHER),
    call=PipelineCall(container="MultiControlNetModel", agree=("global_pool_conditions",), takes_tensors=True),
)
