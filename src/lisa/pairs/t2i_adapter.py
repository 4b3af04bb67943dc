"""Stable Diffusion 1.x, 2.x and XL with ``T2IAdapter``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.sdxl import SDXLMain, load_sdxl
from lisa.mains.stable_diffusion import load_stable_diffusion
from lisa.pairs.base import CONFORMANCE, ORIGINAL_NAMES, TOGETHER, PairSpec, PipelineCall
from lisa.pairs.fit import misfit, refuse_depth
from lisa.processes.ddpm import DDPM_PREDICTIONS
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.t2i_adapter import T2IAdapterSide, adapter_options

_CALL = PipelineCall(
    scale="adapter_conditioning_scale", network="adapter", container="MultiAdapter", takes_tensors=True
)


def check_adapter_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse an adapter whose maps are not those of the main network's down blocks, or that wants other conditions.

    Raises:
        LisaError: the message names what it has and what is needed.
    """
    config, wanted = side.module.config, adapter_options(main.network, main.latent_factor)
    is_xl = config.adapter_type == "full_adapter_xl"
    if is_xl != (wanted["adapter_type"] == "full_adapter_xl"):
        raise misfit(main, f"it is a {config.adapter_type}, the main network needs a {wanted['adapter_type']}")
    channels = [layer.channels for layer in side.layers()]
    if channels != wanted["channels"]:
        raise misfit(main, f"its maps have {channels} channels, the main network's {wanted['channels']}")
    if config.downscale_factor != wanted["downscale_factor"]:
        factor = wanted["downscale_factor"]
        raise misfit(main, f"it shrinks conditions by {config.downscale_factor}, the main network needs {factor}")
    if config.in_channels % 3:
        raise misfit(main, f"it takes conditions of {config.in_channels} channels, pictures have 3")


def load_sdxl_for_adapter(source: str, **options: Any) -> SDXLMain:
    """:func:`lisa.mains.sdxl.load_sdxl`, for pictures that the adapter can cut up: it starts at half the latent's size.

    Raises:
        LisaError: see there.
    """
    main = load_sdxl(source, **options)
    main.size_multiple = 2 * main.latent_factor
    return main


def _make_side(main: MainNetwork, options: SideOptions) -> T2IAdapterSide:
    refuse_depth(options, T2IAdapterSide.kind, "it has a map for each of the main network's down blocks")
    return T2IAdapterSide.from_main(main.network, main.latent_factor, options.condition_channels)


def _sd_pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionAdapterPipeline

    components = main.pipeline_components()
    return StableDiffusionAdapterPipeline(
        **components, adapter=module, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _sdxl_pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionXLAdapterPipeline

    return StableDiffusionXLAdapterPipeline(**main.pipeline_components(), adapter=module)


def _reference(**config: Any) -> T2IAdapterSide:
    """Widths: diffusers' defaults are those of Stable Diffusion 1.5 and XL."""
    from diffusers import T2IAdapter

    with torch.device("meta"):
        return T2IAdapterSide(T2IAdapter(**config))


SD_T2I_ADAPTER = PairSpec(
    name="sd-t2i-adapter",
    main_kind="UNet2DConditionModel",
    side_kind="T2IAdapter",
    load_main=load_stable_diffusion,
    make_side=_make_side,
    load_side=T2IAdapterSide.from_folder,
    check_fit=check_adapter_fits,
    pipeline=_sd_pipeline,
    pipeline_name="StableDiffusionAdapterPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=False,
    shared="",
    default_layer="adapter.1",
    example="Stable Diffusion 1.5",
    reference_side=_reference,
    verified_by=(*CONFORMANCE, ORIGINAL_NAMES, TOGETHER),
    call=_CALL,
)

SDXL_T2I_ADAPTER = PairSpec(
    name="sdxl-t2i-adapter",
    main_kind="UNet2DConditionModel",
    side_kind="T2IAdapter",
    load_main=load_sdxl_for_adapter,
    make_side=_make_side,
    load_side=T2IAdapterSide.from_folder,
    check_fit=check_adapter_fits,
    pipeline=_sdxl_pipeline,
    pipeline_name="StableDiffusionXLAdapterPipeline",
    predictions=DDPM_PREDICTIONS,
    shares_prefix=False,
    shared="",
    default_layer="adapter.1",
    example="Stable Diffusion XL base 1.0",
    reference_side=lambda: _reference(downscale_factor=16, adapter_type="full_adapter_xl"),
    verified_by=(*CONFORMANCE, ORIGINAL_NAMES, TOGETHER),
    call=_CALL,
)
