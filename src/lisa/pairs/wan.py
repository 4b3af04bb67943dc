"""Wan with the branch of VACE."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.casting import cast
from lisa.mains.wan import load_wan
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.wan_vace import WanVACESide

_SAME = ("patch_size", "num_attention_heads", "attention_head_dim", "ffn_dim", "cross_attn_norm", "qk_norm")


def check_wan_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a branch of another Wan; have a fitting one use this one's embedders.

    Raises:
        LisaError: widths differ, it belongs to a deeper network, or it reads other latents.
    """
    check_same(main, side, _SAME)
    theirs = side.module.config
    if max(theirs.vace_layers) >= main.network.config.num_layers:
        raise misfit(
            main, f"it controls block {max(theirs.vace_layers)}, the main network has {main.network.config.num_layers}"
        )
    reads = main.condition_latent_channels + main.latent_factor**2
    if theirs.vace_in_channels != reads:
        raise misfit(main, f"it reads {theirs.vace_in_channels} channels, conditions and mask have {reads}")
    if isinstance(side, WanVACESide):
        side.settle(main.network)


def _make(main: MainNetwork, options: SideOptions) -> WanVACESide:
    refuse_stacking(options, WanVACESide.kind, "the latent of one clip")
    return WanVACESide.from_main(main.network, options, main.condition_latent_channels, main.latent_factor)


def _pipeline(main: MainNetwork, module: Any) -> Any:
    """Around both in one model, of the main network's type: a branch of another type is copied."""
    from diffusers import WanVACEPipeline

    network: Any = main.network
    if module.dtype != network.dtype:
        module = copy.deepcopy(module)
        cast(module, module.device, network.dtype)
    return WanVACEPipeline(**{**main.pipeline_components(), "transformer": module.fused(network)})


def _reference() -> WanVACESide:
    from lisa.networks.wan_vace import WanVACEBranch

    with torch.device("meta"):
        module: nn.Module = WanVACEBranch(
            num_attention_heads=12, ffn_dim=8960, vace_layers=list(range(0, 30, 2)), vace_in_channels=96
        )
    return WanVACESide(module)


WAN_VACE = PairSpec(
    name="wan-vace",
    main_kind="WanTransformer3DModel",
    side_kind=WanVACESide.kind,
    load_main=load_wan,
    make_side=_make,
    load_side=WanVACESide.from_folder,
    check_fit=check_wan_fits,
    pipeline=_pipeline,
    pipeline_name="WanVACEPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embedders and first block",
    default_layer="block.2",
    example="Wan 2.1 T2V 1.3B",
    reference_side=_reference,
    package=WanVACESide.package,
    verified_by=CONFORMANCE,
    call=PipelineCall(image="video", scale="conditioning_scale", network="transformer", clips=True, joins="fused_with"),
)
