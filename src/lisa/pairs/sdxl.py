"""Stable Diffusion XL with ``ControlNetModel`` and ``ControlNetUnionModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.sdxl import load_sdxl
from lisa.pairs.base import CONFORMANCE, ORIGINAL_NAMES, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, refuse_depth, refuse_stacking
from lisa.pairs.stable_diffusion import UNET_DEPTH, check_controlnet_fits, make_controlnet
from lisa.processes.ddpm import DDPM_PREDICTIONS
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.controlnet import ControlNetSide
from lisa.sides.union import ControlNetUnionSide

# Of SDXL's UNet, as far as its ControlNets copy it.
_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def check_sdxl_controlnet_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another UNet.

    Raises:
        LisaError: latents, text width, blocks, pooled text or the condition's size differ; the message names both.
    """
    check_controlnet_fits(main, side)
    if side.module.config.addition_embed_type is not None:
        check_same(main, side, ("addition_time_embed_dim", "projection_class_embeddings_input_dim"))


def _make_union(main: MainNetwork, options: SideOptions) -> ControlNetUnionSide:
    refuse_depth(options, ControlNetUnionSide.kind, UNET_DEPTH)
    instead = ", or choose the pair sdxl-controlnet"
    refuse_stacking(options, ControlNetUnionSide.kind, "one picture per kind of condition", instead)
    return ControlNetUnionSide.from_main(main.network, main.latent_factor)


def _controlnet_pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionXLControlNetPipeline

    return StableDiffusionXLControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _union_pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionXLControlNetUnionPipeline

    return StableDiffusionXLControlNetUnionPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> ControlNetSide:
    from diffusers import ControlNetModel

    with torch.device("meta"):
        return ControlNetSide(ControlNetModel(**_XL))


def _union_reference() -> ControlNetUnionSide:
    from diffusers import ControlNetUnionModel

    with torch.device("meta"):
        return ControlNetUnionSide(ControlNetUnionModel(**_XL))


SDXL_CONTROLNET = PairSpec(
    name="sdxl-controlnet",
    main_kind="UNet2DConditionModel",
    side_kind="ControlNetModel",
    load_main=load_sdxl,
    make_side=make_controlnet,
    load_side=ControlNetSide.from_folder,
    check_fit=check_sdxl_controlnet_fits,
    pipeline=_controlnet_pipeline,
    pipeline_name="StableDiffusionXLControlNetPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=True,
    shared="down and middle blocks",
    default_layer="down.5",
    example="Stable Diffusion XL base 1.0",
    reference_side=_reference,
    verified_by=(*CONFORMANCE, ORIGINAL_NAMES, TOGETHER),
    call=PipelineCall(container="MultiControlNetModel", agree=("global_pool_conditions",), takes_tensors=True),
)

SDXL_CONTROLNET_UNION = PairSpec(
    name="sdxl-controlnet-union",
    main_kind="UNet2DConditionModel",
    side_kind="ControlNetUnionModel",
    load_main=load_sdxl,
    make_side=_make_union,
    load_side=ControlNetUnionSide.from_folder,
    check_fit=check_sdxl_controlnet_fits,
    pipeline=_union_pipeline,
    pipeline_name="StableDiffusionXLControlNetUnionPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=True,
    shared="down and middle blocks",
    default_layer="down.5",
    example="Stable Diffusion XL base 1.0",
    reference_side=_union_reference,
    verified_by=(*CONFORMANCE, TOGETHER),
    call=PipelineCall(
        image="control_image",
        one_at_a_time=True,
        container="MultiControlNetUnionModel",
        agree=("global_pool_conditions",),
    ),
)
