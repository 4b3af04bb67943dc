"""Flux.1 with ``FluxControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.flux import load_flux
from lisa.pairs.base import CONFORMANCE, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.flux import FluxControlNetSide


def check_flux_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another transformer; freeze what of a fitting one cannot reach this transformer.

    Raises:
        LisaError: latents, widths or positions differ (the message names both), or it wants more than a latent.
    """
    names = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
    check_same(main, side, (*names, "pooled_projection_dim", "axes_dims_rope"))
    config = side.module.config
    if config.num_mode is not None:
        raise misfit(main, f"it chooses between {config.num_mode} kinds of conditions (union), of which none is named")
    if config.conditioning_embedding_channels is not None:
        raise misfit(main, "it reads pixels through an embedding of its own (the XLabs layout), not latents")
    if isinstance(side, FluxControlNetSide):
        side.settle(main.network)


def _make(main: MainNetwork, options: SideOptions) -> FluxControlNetSide:
    refuse_stacking(options, FluxControlNetSide.kind)
    return FluxControlNetSide.from_main(main.network, options)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import FluxControlNetPipeline

    return FluxControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> FluxControlNetSide:
    from diffusers import FluxControlNetModel

    with torch.device("meta"):
        return FluxControlNetSide(FluxControlNetModel(num_layers=4, num_single_layers=0, guidance_embeds=True))


FLUX_CONTROLNET = PairSpec(
    name="flux-controlnet",
    main_kind="FluxTransformer2DModel",
    side_kind="FluxControlNetModel",
    load_main=load_flux,
    make_side=_make,
    load_side=FluxControlNetSide.from_folder,
    check_fit=check_flux_fits,
    pipeline=_pipeline,
    pipeline_name="FluxControlNetPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embedders and first block",
    default_layer="block.1",
    example="Flux.1 dev",
    reference_side=_reference,
    overflows_in_fp16="T5 is clipped, and pictures change",
    verified_by=(*CONFORMANCE, "dev and schnell, with single blocks and without", TOGETHER),
    # Its guidance_scale is the embedded guidance, as everyone who samples from Flux knows it; none where not distilled.
    # It leads away from nothing.
    # Of several ControlNets it reads the first one's configuration, and their residuals are added block by block.
    call=PipelineCall(
        image="control_image",
        negates=False,
        container="FluxMultiControlNetModel",
        agree=("num_layers", "num_single_layers", "guidance_embeds"),
    ),
)
