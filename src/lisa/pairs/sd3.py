"""Stable Diffusion 3 and 3.5 with ``SD3ControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.sd3 import load_sd3
from lisa.pairs.base import CONFORMANCE, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.pairs.shell import shell_of
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.sd3 import SD3ControlNetSide


def check_sd3_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another transformer; freeze what of a fitting one cannot reach this transformer.

    Raises:
        LisaError: latents, widths or the condition differ; the message names both.
    """
    names = ["in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "pooled_projection_dim"]
    if side.module.config.joint_attention_dim is not None:  # the 8B layout reads no text
        names.append("joint_attention_dim")
    check_same(main, side, names)
    extra = side.module.config.extra_conditioning_channels
    if extra:
        raise misfit(main, f"it takes {extra} channels beside the condition's latent (inpainting)")
    if isinstance(side, SD3ControlNetSide):
        side.settle(main.network)


def _make(main: MainNetwork, options: SideOptions) -> SD3ControlNetSide:
    refuse_stacking(options, SD3ControlNetSide.kind)
    return SD3ControlNetSide.from_main(main.network, options)


def _pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusion3ControlNetPipeline

    return StableDiffusion3ControlNetPipeline(**main.pipeline_components(), controlnet=_lent(module))


def _lent(module: Any) -> Any:
    """The module itself, or another shell around the same parts where the pipeline would change it.

    A ControlNet without positions of its own is given a copy of the transformer's, and would be saved with it.
    """
    if hasattr(module, "nets"):  # several of them
        return type(module)([_lent(net) for net in module.nets])
    return module if module.config.use_pos_embed else shell_of(module)


def _reference() -> SD3ControlNetSide:
    from diffusers import SD3ControlNetModel

    with torch.device("meta"):
        sizes = {"num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
        return SD3ControlNetSide(SD3ControlNetModel(num_layers=12, **sizes))


SD3_CONTROLNET = PairSpec(
    name="sd3-controlnet",
    main_kind="SD3Transformer2DModel",
    side_kind="SD3ControlNetModel",
    load_main=load_sd3,
    make_side=_make,
    load_side=SD3ControlNetSide.from_folder,
    check_fit=check_sd3_fits,
    pipeline=_pipeline,
    pipeline_name="StableDiffusion3ControlNetPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embedders and first block",
    default_layer="block.1",
    example="Stable Diffusion 3 medium",
    reference_side=_reference,
    verified_by=(
        *CONFORMANCE,
        "with T5 and without, 3.5, the 8B layout",
        "the embedded tiny-sd3, trained and sampled",
        TOGETHER,
    ),
    # It draws the condition's latent from torch's global generator, one draw for the whole batch.
    # Of several ControlNets it reads the first one's configuration, and their residuals are added block by block.
    call=PipelineCall(
        image="control_image",
        one_at_a_time=True,
        container="SD3MultiControlNetModel",
        agree=("num_layers", "force_zeros_for_pooled_projection", "joint_attention_dim"),
    ),
)
