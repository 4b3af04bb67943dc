"""EDM: noise added to data of unit variance at a continuous level sigma (Karras et al., arXiv 2206.00364)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lisa.common.errors import LisaError
from lisa.processes.base import per_sample

#: Mean and standard deviation of ln(sigma) with which Stable Video Diffusion learned to go on from a picture at
#: 576x1024 (arXiv 2311.15127). Smaller pictures need less noise to lose their content: a smaller mean.
SVD_LOG_MEAN, SVD_LOG_STD = 0.7, 1.6


class EDMProcess:
    """``x_t = x_0 + sigma noise``; t is sigma itself, and the model predicts F (the reference's equation 7).

    With data of unit variance (sigma_data = 1) the preconditioning is, as diffusers' ``EulerDiscreteScheduler`` has it
    for v-prediction with continuous timesteps: c_in = 1/sqrt(sigma^2 + 1), c_skip = 1/(sigma^2 + 1), c_out =
    -sigma/sqrt(sigma^2 + 1), c_noise = ln(sigma)/4. The loss ``w ||D - x_0||^2`` with w = 1/c_out^2 is
    ``||F - F*||^2``, which here has weight 1.

    Args:
        log_mean: of the training density, which is log-normal in sigma; Stable Video Diffusion's by default.
        log_std: of ln(sigma) in training.

    Raises:
        LisaError: numbers that are not finite, or a deviation that is not positive.
    """

    prediction: str = "edm"

    def __init__(self, log_mean: float = SVD_LOG_MEAN, log_std: float = SVD_LOG_STD) -> None:
        if not math.isfinite(log_mean):
            raise LisaError(f"log_mean is {log_mean}", "Give a number: the mean of ln(sigma)")
        if not (math.isfinite(log_std) and log_std > 0):
            raise LisaError(f"log_std is {log_std}", "Give a positive number: the standard deviation of ln(sigma)")
        self.log_mean, self.log_std = log_mean, log_std

    def sample_timesteps(self, u: Tensor) -> Tensor:
        """Quantiles of the density at ``u``: sigma, (B,) float32, positive."""
        logs: Tensor = self.log_mean + self.log_std * torch.special.ndtri(u.double())
        return logs.exp().float()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and ``t``."""
        return torch.ones_like(t), t

    def x_t(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_0 + sigma noise``."""
        sigma = per_sample(t, x0)
        return x0 + sigma * noise

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``c_in x_t``, of unit variance where the data is."""
        return x_t * (per_sample(t, x_t).square() + 1).rsqrt()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """F*: ``(noise - sigma x_0) / sqrt(sigma^2 + 1)``."""
        sigma = per_sample(t, x0)
        return (noise - sigma * x0) * (sigma.square() + 1).rsqrt()

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """D: ``c_skip x_t + c_out output``."""
        sigma = per_sample(t, x_t)
        inner = (sigma.square() + 1).rsqrt()
        return inner.square() * x_t - sigma * inner * output

    def decoder_time(self, t: Tensor) -> Tensor:
        """``1000 sigma / (1 + sigma)``: the time at which a rectified flow has this signal-to-noise ratio."""
        return 1000.0 * torch.sigmoid(t.double().log()).float()

    def model_time(self, t: Tensor) -> Tensor:
        """``ln(sigma) / 4``."""
        return t.log() / 4

    def snr(self, t: Tensor) -> Tensor:
        """``1 / sigma^2``."""
        return t.square().reciprocal()

    def snr_of_decoder_time(self, time: Tensor) -> Tensor:
        """SNR at the sigma that ``decoder_time`` brought to ``time``."""
        return ((1000.0 - time) / time).square()

    def residual_factor(self, t: Tensor) -> Tensor:
        """``-sigma sqrt(sigma^2 + 1)``."""
        return -t * (t.square() + 1).sqrt()

    def denoised_factor(self, t: Tensor) -> Tensor:
        """``-sqrt(sigma^2 + 1) / sigma``, which is 1 / c_out."""
        return -(t.square() + 1).sqrt() / t
