"""Stable Video Diffusion: ``UNetSpatioTemporalConditionModel``, clips that go on from a picture (arXiv 2311.15127)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.injecting import injected
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_edm, check_vae, scheduler_of
from lisa.mains.codec import TemporalDecoderCodec
from lisa.mains.loading import Layout, check_required
from lisa.mains.pipeline_main import PipelineMain
from lisa.mains.stable_diffusion import unet_encoder
from lisa.processes.edm import EDMProcess

#: Standard deviation of the noise on the conditioning frame, as the pipeline has it unless told otherwise.
NOISE_AUGMENTATION = 0.02
_PIXELS = 8  # whose multiples the pipeline asks for, whatever the VAE's factor is
_REMEDY = "Use a folder like stabilityai/stable-video-diffusion-img2vid"


class SVDMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``StableVideoDiffusionPipeline``; its modules are frozen and put into eval mode.
        source: where it came from.

    Raises:
        LisaError: its scheduler, its VAE, its image encoder or what its UNet takes is not supported.
    """

    family = "stable-video-diffusion"
    video = True
    context_reads = "frame"
    network_name = "unet"
    text_encoders = ("image_encoder",)
    components = ("vae", "image_encoder", "unet", "scheduler", "feature_extractor")

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        super().__init__(pipeline, source, EDMProcess(), TemporalDecoderCodec(pipeline.vae))
        self.size_multiple = math.lcm(self.size_multiple, _PIXELS)

    def encode_frame(self, frames: Tensor, rate: Tensor, motion: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """What the pipeline makes of a conditioning frame: ``encoder_hidden_states`` (B, 1, D), ``image_latents``
        (B, C, h, w), which are not scaled, and ``added_time_ids`` (B, 3).

        The frame's latent is that of the frame with a little noise, the same at every visit.
        """
        vae, device = self.component("vae"), self.encoder_device("image_encoder")
        noisy = frames + NOISE_AUGMENTATION * _noise(frames, keys)
        pictures = self.pipeline.video_processor.postprocess(frames.cpu(), output_type="pil")
        with torch.no_grad():
            embeds = self.pipeline._encode_image(pictures, device, 1, False)
            latents = vae.encode(noisy.to(vae.device, vae.dtype)).latent_dist.mode()
        # Stable Video Diffusion counts from 0: a rate of 7 is its 6.
        added = torch.stack([rate - 1, motion, torch.full_like(rate, NOISE_AUGMENTATION)], dim=1)
        return {"encoder_hidden_states": embeds, "image_latents": latents, "added_time_ids": added}

    def encode_unconditional(self) -> dict[str, Tensor]:
        """Zeros for the conditioning frame's embedding and latent; the added times stay."""
        width = self.network.config.cross_attention_dim
        return {
            "encoder_hidden_states": torch.zeros(1, 1, width),
            "image_latents": torch.zeros(1, self.latent_channels, 1, 1),
        }

    def encoder_modules(self, part: str) -> list[nn.Module]:
        """The context is made by the image encoder and the VAE."""
        found = super().encoder_modules(part)
        return found if part == "image" else [*found, *super().encoder_modules("image")]

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """The conditioning frame's latent for every frame: (B, F, C, h, w)."""
        latents = context["image_latents"]
        return {**context, "image_latents": latents[:, None].expand(-1, x_t.shape[2], -1, -1, -1)}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: ``(down, mid)`` of an ``SVDControlNet``, or None. The UNet counts frames before channels."""
        network, scaled = self.network, self.process.model_input(x_t, t)
        control = nullcontext() if residuals is None else injected(network, *_cast(network, *residuals))
        with control:
            prediction: Tensor = network(
                in_dtype_of(network, torch.cat([scaled.transpose(1, 2), context["image_latents"]], dim=2)),
                self.process.model_time(t),
                in_dtype_of(network, context["encoder_hidden_states"]),
                context["added_time_ids"],  # the network casts them, after the sines
                return_dict=False,
            )[0]
        return prediction.transpose(1, 2)

    def shared_modules(self) -> list[nn.Module]:
        """Down blocks and middle block: control enters after them."""
        return unet_encoder(self.network)


def load_svd(source: str, **options: Any) -> SVDMain:
    """Load a Stable Video Diffusion model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Stable Video Diffusion model that can be trained on.
    """
    layout = Layout(
        pipelines=("StableVideoDiffusionPipeline", "SVDControlNetPipeline"),
        network="unet",
        check_scheduler=check_edm,
        required=("image_encoder", "feature_extractor"),
    )
    return SVDMain.load(layout, source, **options)


def _noise(frames: Tensor, keys: Sequence[str]) -> Tensor:
    """Standard normal numbers like ``frames`` (B, ...), those of a sample drawn from its key alone."""
    drawn = []
    for key in keys:
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little")
        drawn.append(torch.randn(frames.shape[1:], generator=torch.Generator().manual_seed(seed)))
    return torch.stack(drawn).to(frames)


def _cast(network: nn.Module, down: Sequence[Tensor], mid: Tensor) -> tuple[list[Tensor], Tensor]:
    return [in_dtype_of(network, each) for each in down], in_dtype_of(network, mid)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_edm(scheduler_of(pipeline), source)
    check_vae(pipeline, source, "AutoencoderKLTemporalDecoder")
    check_required(("image_encoder", "feature_extractor"), pipeline.components, source)
    unet, channels = pipeline.unet.config, pipeline.vae.config.latent_channels
    if (unet.in_channels, unet.out_channels) != (2 * channels, channels):
        raise LisaError(
            f"the UNet of {source!r} takes {unet.in_channels} and gives {unet.out_channels} channels, its latents have "
            f"{channels}, and it should take two of them",
            _REMEDY,
        )
    added = unet.projection_class_embeddings_input_dim // unet.addition_time_embed_dim
    if added != 3:
        raise LisaError(f"the UNet of {source!r} reads {added} added times, not rate, motion and noise", _REMEDY)
    width = pipeline.image_encoder.config.projection_dim
    if unet.cross_attention_dim != width:
        raise LisaError(
            f"the UNet of {source!r} reads embeddings of {unet.cross_attention_dim} channels, its image encoder gives "
            f"{width}",
            _REMEDY,
        )
