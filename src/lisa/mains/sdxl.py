"""Stable Diffusion XL: ``UNet2DConditionModel`` with pooled text and picture sizes, two CLIP text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.mains.base import Context
from lisa.mains.checks import check_prediction
from lisa.mains.codec import KLCodec
from lisa.mains.loading import Layout, check_required
from lisa.mains.pipeline_main import PipelineMain
from lisa.mains.stable_diffusion import check_pipeline, unet_encoder, unet_forward
from lisa.processes.ddpm import DDPMProcess

_ENCODERS = ("text_encoder", "text_encoder_2")
_SIZES = 6  # height and width: of the original, of the crop's corner, of the target


class SDXLMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``StableDiffusionXLPipeline``; its modules are frozen and put into eval mode.
        source: where it came from.

    Raises:
        LisaError: a text encoder is missing, or its prediction, its VAE or what its UNet takes is not supported.
    """

    family = "sdxl"
    network_name = "unet"
    text_encoders = _ENCODERS
    components = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        super().__init__(pipeline, source, DDPMProcess(dict(pipeline.scheduler.config)), KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's ``encode_prompt``; ``{"encoder_hidden_states": (B, L, D), "text_embeds": (B, P)}``."""
        device, _ = (self.encoder_device(name) for name in _ENCODERS)
        with torch.no_grad():
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                list(captions), device=device, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def encode_unconditional(self) -> dict[str, Tensor]:
        """Zeros where the pipeline gives zeros to its unconditional pass, as SDXL's own does."""
        empty = super().encode_unconditional()
        if self.pipeline.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(value) for name, value in empty.items()}
        return empty

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Adds ``time_ids`` (B, 6): the picture's own size and no crop, as the pipelines do unless told otherwise."""
        size = [side * self.latent_factor for side in x_t.shape[-2:]]
        ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=x_t.device)
        return {**context, "time_ids": ids.expand(x_t.shape[0], _SIZES)}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: ``(down, mid)`` of a ControlNet, the list of a T2I-Adapter, or None."""
        added = {name: context[name] for name in ("text_embeds", "time_ids")}  # the UNet casts them, after the sines
        time = self.process.model_time(t)
        return unet_forward(self.network, x_t, time, context, residuals, added_cond_kwargs=added)

    def shared_modules(self) -> list[nn.Module]:
        """Down blocks and middle block: a ControlNet enters after them."""
        return unet_encoder(self.network)

    def pipeline_components(self) -> dict[str, Any]:
        """Also what the folder says of the unconditional pass, which is no module."""
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        return {**super().pipeline_components(), "force_zeros_for_empty_prompt": zeros}


def load_sdxl(source: str, **options: Any) -> SDXLMain:
    """Load a Stable Diffusion XL base model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not an SDXL base model that can be trained on.
    """
    layout = Layout(
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLAdapterPipeline",
        ),
        network="unet",
        check_scheduler=check_prediction,
        options={"feature_extractor": None, "image_encoder": None},
        required=_ENCODERS,
    )
    return SDXLMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_required(_ENCODERS, pipeline.components, source)
    others = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
    check_pipeline(pipeline, source, others, "Stable Diffusion XL")
    unet = pipeline.unet.config
    if unet.addition_embed_type != "text_time":
        raise LisaError(
            f"the UNet of {source!r} has addition_embed_type={unet.addition_embed_type!r}, SDXL's has 'text_time'",
            "Choose the pair that suits it (model.pair, or --pair; see lisa models)",
        )
    pooled = pipeline.text_encoder_2.config.projection_dim
    expected = pooled + _SIZES * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != expected:
        raise LisaError(
            f"the UNet of {source!r} takes {unet.projection_class_embeddings_input_dim} numbers beside the text, a "
            f"pooled text of {pooled} and {_SIZES} sizes make {expected}",
            "Use an SDXL base model; refiners take an aesthetic score instead of a size",
        )
    if getattr(pipeline.vae.config, "latents_mean", None) is not None:
        raise LisaError(
            f"the VAE of {source!r} shifts its latents by channel (latents_mean), which is not supported",
            "Use a main network with SDXL's own VAE",
        )
