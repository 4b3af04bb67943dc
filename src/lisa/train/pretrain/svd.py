"""A small Stable Video Diffusion: a UNet over space and time with a CLIP image encoder (arXiv 2311.15127)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lisa.pairs.base import MOTION
from lisa.processes.draws import Draws
from lisa.processes.edm import EDMProcess
from lisa.train.loop import StepOutput
from lisa.train.precision import attention
from lisa.train.pretrain.config import PretrainConfig, VideoSettings

_PICTURE = 224  # to which the pipeline brings every picture for the image encoder
_TIMES = 3  # that are added: rate, motion, noise on the frame
# Where sampling begins. SVD's 700 is for 576x1024; of so small pictures nothing is left long before that.
_SIGMA_MAX = 80.0


@dataclass(frozen=True)
class ClipBatch:
    """``samples``: indices that key the random draws; ``latents`` (B, C, F, h, w), scaled; the ``frames`` that they
    begin with, (B, 3, H, W) in -1..1; ``rates`` (B,), frames per second.
    """

    samples: list[int]
    latents: Tensor
    frames: Tensor
    rates: Tensor

    def __getitem__(self, part: slice) -> ClipBatch:
        return ClipBatch(self.samples[part], self.latents[part], self.frames[part], self.rates[part])


class SVDDenoiser(nn.Module):
    """The UNet and the image encoder, which learn together; all parameters are trained.

    Noise levels are log-normal about 1, not about SVD's e^0.7: pictures of few pixels lose their content earlier, while
    the motion of a clip, which the frame leaves open, is settled at higher levels than the content of a picture.

    Args:
        config: of the pretraining.
        latent_size: side of the latent.
    """

    def __init__(self, config: PretrainConfig, latent_size: int) -> None:
        super().__init__()
        self.image_encoder = _make_image_encoder(config.video)
        self.unet = _make_unet(config, latent_size)
        self.process = EDMProcess(*config.video.log_sigma)
        self.feature_extractor = _make_feature_extractor()

    def embed(self, frames: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 as the UNet reads them, (B, 1, D): ``_encode_image`` of the pipeline, with
        gradient.
        """
        from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as of_pipeline

        large = (of_pipeline._resize_with_antialiasing(frames, (_PICTURE, _PICTURE)) + 1) / 2
        mean, deviation = (
            torch.tensor(each).to(large).reshape(1, 3, 1, 1)
            for each in (self.feature_extractor.image_mean, self.feature_extractor.image_std)
        )
        embedding: Tensor = self.image_encoder((large - mean) / deviation).image_embeds
        return embedding[:, None]

    def predict(self, x_t: Tensor, t: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """F, (B, C, F, h, w), at the noise levels ``t`` (B,).

        ``context``: ``embedding`` (B, 1, D), ``latent`` of the frame (B, C, h, w), not scaled, and ``times`` (B, 3).
        """
        frame = context["latent"][:, None].expand(-1, x_t.shape[2], -1, -1, -1)
        scaled = self.process.model_input(x_t, t).transpose(1, 2)
        prediction: Tensor = self.unet(
            torch.cat([scaled, frame], dim=2),
            self.process.model_time(t),
            context["embedding"],
            context["times"],
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def pipeline(self, vae: Any) -> Any:
        """The diffusers pipeline around these networks."""
        from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline

        pipeline = StableVideoDiffusionPipeline(
            vae=vae,
            image_encoder=self.image_encoder,
            unet=self.unet,
            scheduler=EulerDiscreteScheduler(**scheduler_config()),
            feature_extractor=self.feature_extractor,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class ClipStep:
    """EDM's loss: the squared error of F, of weight 1 at every noise level.

    Args:
        denoiser: is trained.
        vae: frozen; encodes the noisy frame that a clip begins with.
        draws: of noise, noise levels and dropped frames.
        config: of the pretraining.
    """

    def __init__(self, denoiser: SVDDenoiser, vae: Any, draws: Draws, config: PretrainConfig) -> None:
        self.denoiser, self.vae, self.draws = denoiser, vae, draws
        self.settings, self.augmentation = config.denoiser, config.video.augmentation

    def __call__(self, batch: ClipBatch, step: int) -> StepOutput:
        """One forward pass; all that is drawn is keyed by (seed, step, sample)."""
        device, process = batch.latents.device, self.denoiser.process
        noise = self.draws.noise(step, batch.samples, batch.latents.shape[1:]).to(device)
        t = process.sample_timesteps(self.draws.uniform(step, batch.samples, "timestep")).to(device)
        x_t, target = process.x_t(batch.latents, noise, t), process.target(batch.latents, noise, t)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16),
            attention(device, self.settings.bf16),
        ):
            prediction = self.denoiser.predict(x_t, t, self.context(batch, step))
        error = (prediction.float() - target).square().mean((1, 2, 3, 4)).mean()
        return StepOutput(error, {"mse": error.detach()})

    def context(self, batch: ClipBatch, step: int) -> dict[str, Tensor]:
        """What the pipeline makes of the frames, with noise of several strengths; some are dropped, as it has them in
        the pass without a frame: zeros for embedding and latent.
        """
        mean, deviation = self.augmentation
        strength = (mean + deviation * torch.special.ndtri(self.draws.uniform(step, batch.samples, "strength"))).exp()
        strength = strength.to(batch.frames)
        noise = self.draws.noise(step, batch.samples, batch.frames.shape[1:], "frame").to(batch.frames)
        with torch.no_grad():
            latent = self.vae.encode(batch.frames + strength[:, None, None, None] * noise).latent_dist.mode()
        dropped = self.draws.uniform(step, batch.samples, "caption") < self.settings.caption_dropout
        kept = (~dropped).to(batch.frames)
        return {
            "embedding": self.denoiser.embed(batch.frames) * kept[:, None, None],
            "latent": latent.float() * kept[:, None, None, None],
            # Stable Video Diffusion counts rates from 0: its pipeline passes 6 where it is asked for 7.
            "times": torch.stack([batch.rates - 1, torch.full_like(batch.rates, MOTION), strength], dim=1),
        }


def scheduler_config() -> dict[str, Any]:
    """Stable Video Diffusion's, from a lower noise level on."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_max": _SIGMA_MAX,
        "sigma_min": 0.002,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }


def _make_unet(config: PretrainConfig, latent_size: int) -> Any:
    from diffusers import UNetSpatioTemporalConditionModel

    settings, flags = config.video, config.video.attention
    unet = UNetSpatioTemporalConditionModel(
        sample_size=latent_size,
        in_channels=2 * config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        down_block_types=tuple(f"{'CrossAttn' * flag}DownBlockSpatioTemporal" for flag in flags),
        up_block_types=tuple(f"{'CrossAttn' * flag}UpBlockSpatioTemporal" for flag in reversed(flags)),
        block_out_channels=settings.channels,
        addition_time_embed_dim=settings.channels[0],
        projection_class_embeddings_input_dim=_TIMES * settings.channels[0],
        layers_per_block=settings.layers,
        cross_attention_dim=settings.image_width,
        num_attention_heads=(settings.heads,) * len(flags),
        num_frames=config.data.frames,
    )
    # F* has unit variance: a random beginning only adds to that.
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def _make_image_encoder(settings: VideoSettings) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=settings.image_width,
            intermediate_size=4 * settings.image_width,
            projection_dim=settings.image_width,
            num_hidden_layers=settings.image_layers,
            num_attention_heads=settings.heads,
            image_size=_PICTURE,
            patch_size=settings.image_patch,
        )
    )


def _make_feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor()
