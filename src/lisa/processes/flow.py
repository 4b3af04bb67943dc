"""Rectified flow: straight paths from data to noise (arXiv 2209.03003, 2403.03206)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lisa.common.errors import LisaError, choose
from lisa.processes.base import per_sample

TIMESTEP_WEIGHTINGS = ("logit-normal", "uniform")


class RectifiedFlowProcess:
    """``x_t = (1 - t) x_0 + t noise``, t in 0 (data) .. 1 (noise); the model predicts ``noise - x_0``.

    Args:
        weighting: density of the training timesteps: ``logit-normal`` (arXiv 2403.03206 section 3.1) or ``uniform``.
        shift: moves timesteps towards noise, ``s t / (1 + (s - 1) t)`` (the same paper, section 5.3.2).
        logit_mean: of ``logit-normal``.
        logit_std: of ``logit-normal``.
        model_time_scale: what the main network calls t = 1: 1000 (Stable Diffusion 3) or 1 (Flux).

    Raises:
        LisaError: unknown weighting, or numbers that are not positive.
    """

    prediction: str = "flow"

    def __init__(
        self,
        weighting: str = "logit-normal",
        shift: float = 1.0,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        model_time_scale: float = 1000.0,
    ) -> None:
        self.weighting = choose("timestep weighting", weighting, TIMESTEP_WEIGHTINGS)
        positive = {"shift": shift, "logit_std": logit_std, "model_time_scale": model_time_scale}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise LisaError(f"{name} is {value}", "Give a positive number")
        self.shift, self.logit_mean, self.logit_std = shift, logit_mean, logit_std
        self.model_time_scale = model_time_scale

    def sample_timesteps(self, u: Tensor) -> Tensor:
        """Quantiles of the density at ``u``, shifted: (B,) float32 in (0, 1)."""
        t = u.double()
        if self.weighting == "logit-normal":
            t = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(t))
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return t.float().clamp(2.0**-24, 1 - 2.0**-24)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``1 - t`` and ``t``."""
        return 1 - t, t

    def x_t(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``(1 - t) x_0 + t noise``."""
        alpha, sigma = (per_sample(each, x0) for each in self.alpha_sigma(t))
        return alpha * x0 + sigma * noise

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``x_t`` itself."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``noise - x_0``, the path's velocity."""
        return noise - x0

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """``x_t - t output``."""
        return x_t - per_sample(t, x_t) * output

    def decoder_time(self, t: Tensor) -> Tensor:
        """``1000 t``."""
        return t.float() * 1000.0

    def model_time(self, t: Tensor) -> Tensor:
        """``model_time_scale * t``."""
        return t * self.model_time_scale

    def snr(self, t: Tensor) -> Tensor:
        """``((1 - t) / t)^2``."""
        return ((1 - t) / t).square()

    def snr_of_decoder_time(self, time: Tensor) -> Tensor:
        """SNR at ``t = time / 1000``."""
        return self.snr(time / 1000.0)

    def residual_factor(self, t: Tensor) -> Tensor:
        """``-t / (1 - t)``; -inf at t = 1."""
        return -t / (1 - t)

    def denoised_factor(self, t: Tensor) -> Tensor:
        """``-1 / t``."""
        return -1 / t
