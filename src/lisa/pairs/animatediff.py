"""AnimateDiff on Stable Diffusion 1.x and 2.x with ``ControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.animatediff import load_animatediff
from lisa.mains.base import MainNetwork
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import refuse_depth
from lisa.pairs.stable_diffusion import UNET_DEPTH, check_controlnet_fits
from lisa.processes.ddpm import DDPM_PREDICTIONS
from lisa.sides.animatediff import FrameControlNetSide
from lisa.sides.base import SideOptions


def _make(main: MainNetwork, options: SideOptions) -> FrameControlNetSide:
    refuse_depth(options, FrameControlNetSide.kind, UNET_DEPTH)
    return FrameControlNetSide.from_main(main.network, main.latent_factor, options.condition_channels)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import AnimateDiffControlNetPipeline

    return AnimateDiffControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> FrameControlNetSide:
    """Stable Diffusion 1.5's ControlNet; see :mod:`lisa.pairs.stable_diffusion`."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        return FrameControlNetSide(ControlNetModel(cross_attention_dim=768))


ANIMATEDIFF_CONTROLNET = PairSpec(
    name="animatediff-controlnet",
    main_kind="UNetMotionModel",
    side_kind=FrameControlNetSide.kind,
    load_main=load_animatediff,
    make_side=_make,
    load_side=FrameControlNetSide.from_folder,
    check_fit=check_controlnet_fits,
    pipeline=_pipeline,
    pipeline_name="AnimateDiffControlNetPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=True,
    shared="down and middle blocks",
    default_layer="down.5",
    example="AnimateDiff on Stable Diffusion 1.5",
    reference_side=_reference,
    verified_by=CONFORMANCE,
    call=PipelineCall(image="conditioning_frames", clips=True, chunk="decode_chunk_size"),
)
