"""The denoiser of a small model, trained together with its text encoders on latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lisa.core.residual import make_weighting
from lisa.processes.base import ForwardProcess
from lisa.processes.draws import Draws
from lisa.train.loop import StepOutput
from lisa.train.precision import attention
from lisa.train.pretrain.config import DenoiserSettings, PretrainConfig


class Denoiser(Protocol):
    """A main network with its text encoders, as a module: all its parameters are trained."""

    process: ForwardProcess

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids by name, each (B, L)."""

    def vary(self, tokens: Mapping[str, Tensor], u: float) -> Mapping[str, Tensor]:
        """Tokens of a training step with the uniform number ``u``: how they are padded may change from step to step."""

    def predict(self, x_t: Tensor, t: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """What the process's target is, (B, C, h, w), at process times ``t`` (B,)."""

    def pipeline(self, vae: Any) -> Any:
        """The diffusers pipeline around it."""


def make_denoiser(config: PretrainConfig, captions: Sequence[str], latent_size: int) -> Any:
    """A randomly initialised denoiser of ``config.architecture``."""
    from lisa.train.pretrain.sd3 import SD3Denoiser
    from lisa.train.pretrain.unet import UNetDenoiser

    kind = {"unet": UNetDenoiser, "sd3": SD3Denoiser}[config.architecture]
    return kind(config, captions, latent_size)


@dataclass(frozen=True)
class LatentBatch:
    """``samples``: indices that key the random draws; ``latents`` (B, C, h, w), scaled; ``tokens`` by name (B, L)."""

    samples: list[int]
    latents: Tensor
    tokens: Mapping[str, Tensor]


class DenoiserStep:
    """The usual loss in the space of the target, optionally min-SNR weighted (arXiv 2303.09556, equation 5)."""

    def __init__(
        self, denoiser: Denoiser, draws: Draws, settings: DenoiserSettings, *, snr_gamma: float | None = None
    ) -> None:
        self.denoiser, self.draws, self.settings, self.snr_gamma = denoiser, draws, settings, snr_gamma
        self.empty = denoiser.tokens([""])

    def __call__(self, batch: LatentBatch, step: int) -> StepOutput:
        """One forward pass with noise, noise level and caption dropout keyed by (seed, step, sample)."""
        device, process = batch.latents.device, self.denoiser.process
        noise = self.draws.noise(step, batch.samples, batch.latents.shape[1:]).to(device)
        t = process.sample_timesteps(self.draws.uniform(step, batch.samples, "timestep")).to(device)
        dropped = self.draws.uniform(step, batch.samples, "caption") < self.settings.caption_dropout
        tokens = {
            name: torch.where(dropped[:, None], self.empty[name], ids).to(device) for name, ids in batch.tokens.items()
        }
        tokens = self.denoiser.vary(tokens, float(self.draws.uniform(step, [0], "padding")))
        x_t, target = process.x_t(batch.latents, noise, t), process.target(batch.latents, noise, t)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16),
            attention(device, self.settings.bf16),
        ):
            prediction = self.denoiser.predict(x_t, t, tokens)
        error = (prediction.float() - target).square().mean((1, 2, 3))
        return StepOutput((self._weight(t) * error).mean(), {"mse": error.mean().detach()})

    def _weight(self, t: Tensor) -> Tensor:
        process = self.denoiser.process
        ones = torch.ones_like(t, dtype=torch.float32)
        if self.snr_gamma is None or process.prediction == "flow":
            return ones
        min_snr = make_weighting(
            "min-snr", snr=lambda t: process.snr(t).float(), prediction=process.prediction, gamma=self.snr_gamma
        )
        found: Tensor = min_snr(ones, t, update=False)
        return found
