"""HunyuanDiT with ``HunyuanDiT2DControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.hunyuan import load_hunyuan
from lisa.pairs.base import CONFORMANCE, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_depth, refuse_stacking
from lisa.processes.ddpm import DDPM_PREDICTIONS
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.hunyuan import HunyuanControlNetSide

_SAME = (
    "in_channels",
    "patch_size",
    "hidden_size",
    "num_attention_heads",
    "attention_head_dim",
    "cross_attention_dim",
    "cross_attention_dim_t5",
    "text_len",
    "text_len_t5",
    "use_style_cond_and_image_meta_size",
)


def check_hunyuan_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another HunyuanDiT.

    Raises:
        LisaError: widths, text lengths, the embedding of sizes (versions up to 1.1 have it) or the number of blocks
            differ; the message names both.
    """
    check_same(main, side, _SAME)
    skips = main.network.config.num_layers // 2 - 1
    blocks = len(side.module.controlnet_blocks)
    if blocks != skips:
        raise misfit(main, f"it has {blocks} blocks, the main network takes {skips} residuals")


def _make(main: MainNetwork, options: SideOptions) -> HunyuanControlNetSide:
    refuse_stacking(options, HunyuanControlNetSide.kind)
    refuse_depth(options, HunyuanControlNetSide.kind, "it has as many blocks as the main network has skips")
    return HunyuanControlNetSide.from_main(main.network)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import HunyuanDiTControlNetPipeline

    components = main.pipeline_components()
    return HunyuanDiTControlNetPipeline(
        **components, controlnet=module, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _reference() -> HunyuanControlNetSide:
    from diffusers import HunyuanDiT2DControlNetModel

    with torch.device("meta"):
        return HunyuanControlNetSide(
            HunyuanDiT2DControlNetModel(
                in_channels=4,
                patch_size=2,
                hidden_size=1408,
                mlp_ratio=4.3637,
                sample_size=128,
                transformer_num_layers=40,
                use_style_cond_and_image_meta_size=False,
            )
        )


HUNYUAN_CONTROLNET = PairSpec(
    name="hunyuan-controlnet",
    main_kind="HunyuanDiT2DModel",
    side_kind=HunyuanControlNetSide.kind,
    load_main=load_hunyuan,
    make_side=_make,
    load_side=HunyuanControlNetSide.from_folder,
    check_fit=check_hunyuan_fits,
    pipeline=_pipeline,
    pipeline_name="HunyuanDiTControlNetPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=True,
    shared="embeddings, first half of the blocks and the middle block",
    default_layer="block.8",
    example="HunyuanDiT 1.2",
    reference_side=_reference,
    verified_by=(*CONFORMANCE, "1.2 and the older one with style and size", TOGETHER),
    # Without use_resolution_binning=False the picture is made in the nearest of ten standard sizes, whatever is asked
    # for. The condition's latent is drawn from torch's global generator, one draw for the whole batch.
    call=PipelineCall(
        image="control_image",
        more={"use_resolution_binning": False},
        one_at_a_time=True,
        container="HunyuanDiT2DMultiControlNetModel",
    ),
)
