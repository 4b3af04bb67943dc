"""Discrete variance-preserving diffusion, as configured by any diffusers scheduler: epsilon and v-prediction."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lisa.common.errors import LisaError, choose
from lisa.processes.base import per_sample

DDPM_PREDICTIONS = ("epsilon", "v_prediction")


class DDPMProcess:
    """``x_t = alpha_t x_0 + sigma_t noise`` with ``alpha_t^2 + sigma_t^2 = 1``, t = 0 .. T-1.

    Args:
        scheduler_config: the configuration of a diffusers scheduler (``scheduler.config``, or the folder's
            ``scheduler_config.json``): betas by schedule or given, zero terminal SNR, prediction type. What does not
            concern the forward process is ignored; what is missing takes diffusers' default.

    Raises:
        LisaError: a prediction type other than ``epsilon`` and ``v_prediction``, or betas that cannot be made.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        prediction = scheduler_config.get("prediction_type") or "epsilon"
        if prediction not in DDPM_PREDICTIONS:
            raise LisaError(
                f"the scheduler's prediction_type is {prediction!r}, for which this process has no residual",
                "Use a main network that predicts one of these",
                choices=DDPM_PREDICTIONS,
            )
        self.prediction: str = prediction
        alphas_cumprod = _alphas_cumprod(scheduler_config)
        self.timesteps = len(alphas_cumprod)
        # (T, 3): alpha, sigma, snr. Double, so that 1 - alpha^2 does not lose what diffusers' fp32 product still holds.
        signal = alphas_cumprod.double()
        self._table = torch.stack([signal.sqrt(), (1 - signal).sqrt(), signal / (1 - signal)], dim=1)

    def sample_timesteps(self, u: Tensor) -> Tensor:
        """Uniform over 0 .. T-1, (B,) int64."""
        return (u.double() * self.timesteps).long().clamp(0, self.timesteps - 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, each (B,) in double precision."""
        alpha, sigma, _ = self._rows(t).unbind(dim=1)
        return alpha, sigma

    def x_t(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``alpha x_0 + sigma noise``."""
        alpha, sigma = (per_sample(each, x0) for each in self.alpha_sigma(t))
        return alpha * x0 + sigma * noise

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``x_t`` itself."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``noise`` (epsilon) or ``alpha noise - sigma x_0`` (v, arXiv 2202.00512 appendix D)."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = (per_sample(each, x0) for each in self.alpha_sigma(t))
        return alpha * noise - sigma * x0

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """``(x_t - sigma output) / alpha`` (epsilon) or ``alpha x_t - sigma output`` (v).

        At zero terminal SNR an epsilon carries nothing about x_0; the answer there is 0, about the mean of latents.
        """
        alpha, sigma = (per_sample(each, x_t) for each in self.alpha_sigma(t))
        if self.prediction == "v_prediction":
            return alpha * x_t - sigma * output
        nothing = alpha == 0
        estimate = (x_t - sigma * output) / torch.where(nothing, torch.ones_like(alpha), alpha)
        return torch.where(nothing, torch.zeros_like(estimate), estimate)

    def decoder_time(self, t: Tensor) -> Tensor:
        """``1000 t / T``, float."""
        return t.float() * (1000.0 / self.timesteps)

    def model_time(self, t: Tensor) -> Tensor:
        """``t`` itself."""
        return t

    def snr(self, t: Tensor) -> Tensor:
        """``alpha^2 / sigma^2``."""
        return self._rows(t)[:, 2]

    def snr_of_decoder_time(self, time: Tensor) -> Tensor:
        """SNR at the timestep that ``decoder_time`` brought to ``time``."""
        return self.snr((time * (self.timesteps / 1000.0)).round().long().clamp(0, self.timesteps - 1))

    def residual_factor(self, t: Tensor) -> Tensor:
        """``-sigma`` (epsilon) or ``-sigma / alpha`` (v); -inf at zero terminal SNR for v."""
        alpha, sigma = self.alpha_sigma(t)
        return -sigma if self.prediction == "epsilon" else -sigma / alpha

    def denoised_factor(self, t: Tensor) -> Tensor:
        """``-alpha / sigma`` (epsilon) or ``-1 / sigma`` (v)."""
        alpha, sigma = self.alpha_sigma(t)
        return -alpha / sigma if self.prediction == "epsilon" else -1 / sigma

    def _rows(self, t: Tensor) -> Tensor:
        if self._table.device != t.device:
            self._table = self._table.to(t.device)
        return self._table[t.long()]


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    accepted = inspect.signature(DDPMScheduler.__init__).parameters
    known = {name: value for name, value in config.items() if name in accepted and not name.startswith("_")}
    if known.get("beta_schedule") is not None:
        choose(
            "beta_schedule",
            known["beta_schedule"],
            ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
        )
    scheduler = DDPMScheduler(**known)
    if not bool(((scheduler.betas >= 0) & (scheduler.betas <= 1)).all()):
        raise LisaError(
            "the scheduler's betas do not lie between 0 and 1", "Correct beta_start, beta_end or trained_betas"
        )
    products: Tensor = scheduler.alphas_cumprod
    return products
