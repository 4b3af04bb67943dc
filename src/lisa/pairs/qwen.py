"""Qwen-Image with ``QwenImageControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.qwen import EMPTY, load_qwen_image
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.qwen import QwenImageControlNetSide

_SAME = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "axes_dims_rope")


def check_qwen_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another transformer; freeze what of a fitting one cannot reach this transformer.

    Raises:
        LisaError: latents, widths or positions differ, or it reads more than the condition's latent.
    """
    check_same(main, side, _SAME)
    extra = side.module.config.extra_condition_channels
    if extra:
        raise misfit(main, f"it takes {extra} channels beside the condition's latent (inpainting)")
    if isinstance(side, QwenImageControlNetSide):
        side.settle(main.network)


def _make(main: MainNetwork, options: SideOptions) -> QwenImageControlNetSide:
    refuse_stacking(options, QwenImageControlNetSide.kind)
    return QwenImageControlNetSide.from_main(main.network, options)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import QwenImageControlNetPipeline

    return QwenImageControlNetPipeline(**main.pipeline_components(), controlnet=module)


def _reference() -> QwenImageControlNetSide:
    from diffusers import QwenImageControlNetModel

    with torch.device("meta"):
        return QwenImageControlNetSide(QwenImageControlNetModel(num_layers=5))


QWEN_CONTROLNET = PairSpec(
    name="qwen-controlnet",
    main_kind="QwenImageTransformer2DModel",
    side_kind=QwenImageControlNetSide.kind,
    load_main=load_qwen_image,
    make_side=_make,
    load_side=QwenImageControlNetSide.from_folder,
    check_fit=check_qwen_fits,
    pipeline=_pipeline,
    pipeline_name="QwenImageControlNetPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embedders and first block",
    default_layer="block.2",
    example="Qwen-Image",
    reference_side=_reference,
    overflows_in_fp16="Qwen 2.5 VL and the transformer",
    verified_by=CONFORMANCE,
    # No container: QwenImageMultiControlNetModel takes several pictures for one ControlNet, not several ControlNets.
    call=PipelineCall(image="control_image", guidance="true_cfg_scale", negative=EMPTY),
)
