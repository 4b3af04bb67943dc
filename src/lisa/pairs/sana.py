"""Sana with ``SanaControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.sana import load_sana
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.sana import SanaControlNetSide

_SAME = (
    "in_channels",
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "caption_channels",
    "interpolation_scale",
)


def check_sana_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another Sana.

    Raises:
        LisaError: latents, widths or positions differ, or it has more blocks than the main network takes up.
    """
    check_same(main, side, _SAME)
    blocks, most = len(side.module.controlnet_blocks), main.network.config.num_layers - 1
    if blocks > most:
        raise misfit(main, f"it has {blocks} blocks, the main network takes up the control of {most}")


def _make(main: MainNetwork, options: SideOptions) -> SanaControlNetSide:
    refuse_stacking(options, SanaControlNetSide.kind)
    return SanaControlNetSide.from_main(main.network, options.depth)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import SanaControlNetPipeline

    return SanaControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> SanaControlNetSide:
    """Sana 1.6B is what diffusers' defaults describe."""
    from diffusers import SanaControlNetModel

    with torch.device("meta"):
        return SanaControlNetSide(SanaControlNetModel())


SANA_CONTROLNET = PairSpec(
    name="sana-controlnet",
    main_kind="SanaTransformer2DModel",
    side_kind=SanaControlNetSide.kind,
    load_main=load_sana,
    make_side=_make,
    load_side=SanaControlNetSide.from_folder,
    check_fit=check_sana_fits,
    pipeline=_pipeline,
    pipeline_name="SanaControlNetPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embeddings and the first two blocks",
    default_layer="block.3",
    example="Sana 1.6B",
    reference_side=_reference,
    overflows_in_fp16="Gemma 2",
    verified_by=CONFORMANCE,
    # Without the last one the picture is made in the nearest of its standard sizes and then cut.
    call=PipelineCall(image="control_image", more={"use_resolution_binning": False}),
)
