"""Stable Diffusion 1.x and 2.x: ``UNet2DConditionModel``, one CLIP text encoder, 4-channel latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_prediction, check_vae, scheduler_of
from lisa.mains.codec import KLCodec
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain
from lisa.processes.ddpm import DDPMProcess

# In a UNet's configuration: what it wants beside x_t, the time and the text.
_MORE_THAN_TEXT = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


class StableDiffusionMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``StableDiffusionPipeline``; its modules are frozen and put into eval mode.
        source: where it came from.

    Raises:
        LisaError: its prediction type, its VAE or what its UNet takes is not supported.
    """

    family = "stable-diffusion"
    network_name = "unet"
    components = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    def __init__(self, pipeline: Any, source: str) -> None:
        check_pipeline(pipeline, source)
        super().__init__(pipeline, source, DDPMProcess(dict(pipeline.scheduler.config)), KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``; ``{"encoder_hidden_states": (B, L, D)}``."""
        with torch.no_grad():
            embeds, _ = self.pipeline.encode_prompt(list(captions), self.encoder_device(), 1, False)
        return {"encoder_hidden_states": embeds}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: ``(down, mid)`` of a ControlNet, the list of a T2I-Adapter, or None."""
        return unet_forward(self.network, x_t, self.process.model_time(t), context, residuals)

    def shared_modules(self) -> list[nn.Module]:
        """Down blocks and middle block: a ControlNet enters after them."""
        return unet_encoder(self.network)


def unet_forward(network: nn.Module, x_t: Tensor, t: Tensor, context: Context, residuals: Any, **more: Any) -> Tensor:
    """One pass of a ``UNet2DConditionModel``; ``residuals`` as side networks give them, ``more`` for the family."""
    prediction: Tensor = network(
        in_dtype_of(network, x_t),
        t,
        in_dtype_of(network, context["encoder_hidden_states"]),
        return_dict=False,
        **_injected(network, residuals),
        **more,
    )[0]
    return prediction


def _injected(network: nn.Module, residuals: Any) -> dict[str, Any]:
    """What a side network gave, as arguments of the UNet: ``(down, mid)`` of a ControlNet, a list of a T2I-Adapter."""
    if residuals is None:
        return {}
    if isinstance(residuals, list):
        # A new list for every pass: the UNet takes its entries out.
        return {"down_intrablock_additional_residuals": [in_dtype_of(network, each) for each in residuals]}
    down, mid = residuals
    return {
        "down_block_additional_residuals": [in_dtype_of(network, each) for each in down],
        "mid_block_additional_residual": in_dtype_of(network, mid),
    }


def unet_encoder(network: Any) -> list[nn.Module]:
    """Down blocks and middle block, in order."""
    blocks = [*network.down_blocks, network.mid_block]
    return [block for block in blocks if block is not None]


def load_stable_diffusion(source: str, **options: Any) -> StableDiffusionMain:
    """Load a Stable Diffusion 1.x or 2.x model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Stable Diffusion 1.x/2.x model that can be trained on.
    """
    layout = Layout(
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionAdapterPipeline",
        ),
        network="unet",
        check_scheduler=check_prediction,
        options={
            "safety_checker": None,
            "feature_extractor": None,
            "image_encoder": None,
            "requires_safety_checker": False,
        },
        required=("text_encoder", "tokenizer"),
    )
    return StableDiffusionMain.load(layout, source, **options)


def check_pipeline(
    pipeline: Any, source: str, refused: Sequence[str] = _MORE_THAN_TEXT, wanted: str = "Stable Diffusion 1.x or 2.x"
) -> None:
    """What can only be told once the model is there.

    Args:
        pipeline: with a ``unet``, a ``vae`` and a ``scheduler``.
        source: where it came from.
        refused: entries of the UNet's configuration that ask for inputs which the family is not given.
        wanted: the models of the family, for people.

    Raises:
        LisaError: its prediction, its VAE or its UNet is not supported.
    """
    check_prediction(scheduler_of(pipeline), source)
    check_vae(pipeline, source)
    unet, vae = pipeline.unet.config, pipeline.vae.config
    if unet.in_channels != vae.latent_channels:
        raise LisaError(
            f"the UNet of {source!r} takes {unet.in_channels} channels, its latents have {vae.latent_channels}",
            "Inpainting and depth UNets have extra input channels and are not supported; use the plain base model",
        )
    for name in refused:
        if getattr(unet, name, None) is not None:
            raise LisaError(
                f"the UNet of {source!r} has {name}={getattr(unet, name)!r}: it needs more than it would be given",
                f"Use a plain {wanted} model",
            )
