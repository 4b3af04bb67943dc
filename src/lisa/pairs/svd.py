"""Stable Video Diffusion with ``SVDControlNet``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.svd import load_svd
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, refuse_depth
from lisa.pairs.stable_diffusion import UNET_DEPTH, check_controlnet_fits
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.svd import SVDControlNetSide


def check_svd_controlnet_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another UNet.

    Raises:
        LisaError: latents, embeddings, blocks, added times or the condition's size differ; the message names both.
    """
    check_controlnet_fits(main, side)
    check_same(main, side, ("down_block_types", "addition_time_embed_dim", "projection_class_embeddings_input_dim"))


def _make(main: MainNetwork, options: SideOptions) -> SVDControlNetSide:
    refuse_depth(options, SVDControlNetSide.kind, UNET_DEPTH)
    return SVDControlNetSide.from_main(main.network, main.latent_factor, options.condition_channels)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from lisa.networks import SVDControlNetPipeline

    return SVDControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> SVDControlNetSide:
    """Stable Video Diffusion is what the defaults describe."""
    from lisa.networks import SVDControlNet

    with torch.device("meta"):
        return SVDControlNetSide(SVDControlNet())


SVD_CONTROLNET = PairSpec(
    name="svd-controlnet",
    main_kind="UNetSpatioTemporalConditionModel",
    side_kind=SVDControlNetSide.kind,
    load_main=load_svd,
    make_side=_make,
    load_side=SVDControlNetSide.from_folder,
    check_fit=check_svd_controlnet_fits,
    pipeline=_pipeline,
    pipeline_name="SVDControlNetPipeline",
    predictions=("edm",),
    shares_prefix=True,
    shared="down and middle blocks",
    default_layer="down.5",
    example="Stable Video Diffusion",
    reference_side=_reference,
    package=SVDControlNetSide.package,
    verified_by=(*CONFORMANCE, "the embedded tiny-svd, trained and sampled"),
    call=PipelineCall(
        image="conditioning_frames",
        guidance="max_guidance_scale",
        negates=False,
        takes_tensors=True,
        clips=True,
        begins="frame",
        chunk="decode_chunk_size",
    ),
)
