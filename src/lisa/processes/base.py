"""What a forward process is: how x_t is made from x_0 and noise, and what a model of it predicts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class ForwardProcess(Protocol):
    """``x_t = alpha x_0 + sigma noise``, and everything that follows from it and from the kind of prediction.

    Timesteps ``t`` (B,) are in the process's own count; what comes back per sample is (B,). ``g`` is the likelihood
    score, the gradient of log p(c | x_t) by x_t (arXiv 2606.27192).
    """

    prediction: str  # "epsilon", "v_prediction", "flow" or "edm"

    def sample_timesteps(self, u: Tensor) -> Tensor:
        """Training timesteps from uniform numbers ``u`` (B,) in (0, 1)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, each (B,)."""

    def x_t(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy sample, (B, ...)."""

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noisy sample at the scale at which networks are given it, (B, ...)."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is trained to predict, (B, ...)."""

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that lies in the model's output, (B, ...)."""

    def decoder_time(self, t: Tensor) -> Tensor:
        """The timestep as the likelihood decoder and the meter count it: 0 to 1000, float."""

    def model_time(self, t: Tensor) -> Tensor:
        """The timestep as the main network takes it."""

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2; infinite at sigma = 0."""

    def snr_of_decoder_time(self, time: Tensor) -> Tensor:
        """The same of ``decoder_time(t)``: what ``attach(snr=...)`` takes."""

    def residual_factor(self, t: Tensor) -> Tensor:
        """E[target - prior] divided by ``g`` (the table of the method); -inf where that form breaks down."""

    def denoised_factor(self, t: Tensor) -> Tensor:
        """E[target - prior] divided by ``E[x_0 | x_t, c] - E[x_0 | x_t]``: finite where residual_factor is not."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (B,), shaped to multiply ``like`` (B, ...), in its dtype, or fp32 where that is narrower."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return values.to(device=like.device, dtype=wide).reshape(-1, *[1] * (like.ndim - 1))
