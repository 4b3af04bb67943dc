"""The UNet of a small model, trained together with its text encoder on latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lisa.processes.base import ForwardProcess
from lisa.processes.draws import Draws
from lisa.train.loop import StepOutput
from lisa.train.pretrain.config import DenoiserSettings


def make_unet(settings: DenoiserSettings, latent_channels: int, latent_size: int, width: int) -> Any:
    """A randomly initialised ``UNet2DConditionModel`` with cross-attention of ``width``."""
    from diffusers import UNet2DConditionModel

    flags = settings.attention
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if flag else "DownBlock2D" for flag in flags),
        up_block_types=tuple("CrossAttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(flags)),
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        cross_attention_dim=width,
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


@dataclass(frozen=True)
class LatentBatch:
    """``samples``: indices that key the random draws; ``latents`` (B, C, h, w), scaled; ``tokens`` (B, L)."""

    samples: list[int]
    latents: Tensor
    tokens: Tensor


class DenoiserStep:
    """The usual noise-prediction loss, optionally min-SNR weighted (arXiv 2303.09556, equation 5)."""

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        process: ForwardProcess,
        draws: Draws,
        empty_tokens: Tensor,
        settings: DenoiserSettings,
    ) -> None:
        self.unet, self.text_encoder, self.process, self.draws = unet, text_encoder, process, draws
        self.empty_tokens, self.settings = empty_tokens, settings

    def __call__(self, batch: LatentBatch, step: int) -> StepOutput:
        """One forward pass with noise, noise level and caption dropout keyed by (seed, step, sample)."""
        device = batch.latents.device
        noise = self.draws.noise(step, batch.samples, batch.latents.shape[1:]).to(device)
        t = self.process.sample_timesteps(self.draws.uniform(step, batch.samples, "timestep")).to(device)
        dropped = self.draws.uniform(step, batch.samples, "caption") < self.settings.caption_dropout
        tokens = torch.where(dropped[:, None].to(device), self.empty_tokens.to(device), batch.tokens)
        x_t, target = self.process.x_t(batch.latents, noise, t), self.process.target(batch.latents, noise, t)
        text = self.text_encoder(tokens).last_hidden_state
        error = (self.unet(x_t, self.process.model_time(t), text).sample - target).square().mean((1, 2, 3))
        return StepOutput((self._weight(t) * error).mean(), {"mse": error.mean().detach()})

    def _weight(self, t: Tensor) -> Tensor:
        if self.settings.snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.process.snr(t).float()
        clipped = snr.clamp(max=self.settings.snr_gamma)
        return clipped / snr if self.process.prediction == "epsilon" else clipped / (snr + 1)
