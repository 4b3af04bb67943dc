"""Z-Image with ``ZImageControlNetModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lisa.mains.base import MainNetwork
from lisa.mains.zimage import load_zimage
from lisa.pairs.base import CONFORMANCE, PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_stacking
from lisa.pairs.shell import shell_of
from lisa.sides.base import SideNetwork, SideOptions
from lisa.sides.zimage import ZImageControlNetSide


def check_zimage_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a ControlNet of another transformer; lend this transformer's modules to a fitting one.

    Raises:
        LisaError: widths differ, it belongs to a deeper network, it reads fewer channels than latents have, or its
            layers run twice.
    """
    check_same(main, side, ("dim", "n_heads", "n_refiner_layers"))
    ours, theirs = main.network.config, side.module.config
    if theirs.add_control_noise_refiner == "control_layers":
        # The features to align would be those of the first time, beside the refiner, from where no control goes out.
        raise misfit(main, "add_control_noise_refiner is 'control_layers' (its layers run twice), not supported")
    if max(theirs.control_layers_places) >= ours.n_layers:
        raise misfit(
            main, f"it controls layer {max(theirs.control_layers_places)}, the main network has {ours.n_layers}"
        )
    if theirs.control_in_dim < ours.in_channels:
        raise misfit(main, f"it reads {theirs.control_in_dim} channels, latents have {ours.in_channels}")
    if isinstance(side, ZImageControlNetSide):
        side.settle(main.network)


def _make(main: MainNetwork, options: SideOptions) -> ZImageControlNetSide:
    refuse_stacking(options, ZImageControlNetSide.kind)
    return ZImageControlNetSide.from_main(main.network, options)


def _pipeline(main: MainNetwork, module: Any) -> Any:
    """Around another shell of the same parts: the pipeline hangs the main network's modules into what it is given."""
    from diffusers import ZImageControlNetPipeline

    return ZImageControlNetPipeline(**main.pipeline_components(), controlnet=shell_of(module))


def _reference() -> ZImageControlNetSide:
    from diffusers import ZImageControlNetModel

    with torch.device("meta"):
        module: nn.Module = ZImageControlNetModel(
            control_layers_places=[0, 5, 10, 15, 20, 25],
            control_in_dim=16,
        )
    return ZImageControlNetSide(module)


ZIMAGE_CONTROLNET = PairSpec(
    name="zimage-controlnet",
    main_kind="ZImageTransformer2DModel",
    side_kind=ZImageControlNetSide.kind,
    load_main=load_zimage,
    make_side=_make,
    load_side=ZImageControlNetSide.from_folder,
    check_fit=check_zimage_fits,
    pipeline=_pipeline,
    pipeline_name="ZImageControlNetPipeline",
    predictions=("flow",),
    shares_prefix=True,
    shared="embedders, refiners and first layer",
    default_layer="block.2",
    example="Z-Image",
    reference_side=_reference,
    overflows_in_fp16="the transformer (its authors' issue 14)",
    verified_by=CONFORMANCE,
    # Its guidance counts what is added to the conditional prediction: none is 0.
    call=PipelineCall(image="control_image", guidance_offset=-1.0),
)
