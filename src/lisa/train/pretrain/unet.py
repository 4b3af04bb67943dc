"""A small Stable Diffusion: UNet and CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lisa.processes.ddpm import DDPMProcess
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.text import make_text_encoder, make_tokenizer


class UNetDenoiser(nn.Module):
    """See :class:`lisa.train.pretrain.denoiser.Denoiser`.

    Args:
        config: of the pretraining.
        captions: the tokenizer learns their words.
        latent_size: side of the latent.
    """

    def __init__(self, config: PretrainConfig, captions: Sequence[str], latent_size: int) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer(captions, config.text)
        self.unet = _make_unet(config, latent_size)
        self.text_encoder = make_text_encoder(self.tokenizer, config.text)
        self.process = DDPMProcess(scheduler_config(config.unet.prediction))

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """``{"clip": (B, L)}``."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return {"clip": self.tokenizer(list(captions), max_length=self.tokenizer.model_max_length, **options).input_ids}

    def vary(self, tokens: Mapping[str, Tensor], u: float) -> Mapping[str, Tensor]:
        """As they are."""
        return tokens

    def predict(self, x_t: Tensor, t: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Noise or v, (B, C, h, w)."""
        text = self.text_encoder(tokens["clip"]).last_hidden_state
        prediction: Tensor = self.unet(x_t, self.process.model_time(t), text, return_dict=False)[0]
        return prediction

    def pipeline(self, vae: Any) -> Any:
        """The diffusers pipeline around these networks."""
        from diffusers import DDPMScheduler, StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DDPMScheduler.from_config(scheduler_config(self.process.prediction)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _make_unet(config: PretrainConfig, latent_size: int) -> Any:
    from diffusers import UNet2DConditionModel

    settings, flags = config.unet, config.unet.attention
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if flag else "DownBlock2D" for flag in flags),
        up_block_types=tuple("CrossAttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(flags)),
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        cross_attention_dim=config.text.hidden,
        attention_head_dim=settings.heads,
        norm_num_groups=settings.groups,
    )


def scheduler_config(prediction: str) -> dict[str, Any]:
    """The noise schedule: SD's, but ending in nearly pure noise.

    SD's own end (alpha-bar 0.0047) leaks the mean colour of a small latent into training, which sampling then lacks
    (arXiv 2305.08891, section 3.1); with ``beta_end`` 0.02 alpha-bar ends at 2e-4.
    """
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.02,
        "prediction_type": prediction,
        "clip_sample": False,
        "steps_offset": 1,  # what diffusers' Stable Diffusion pipelines expect
        "timestep_spacing": "trailing",
    }
