"""The autoencoder of a small model: AutoencoderKL (Rombach et al., arXiv 2112.10752, section 3.1), without a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lisa.train.loop import StepOutput
from lisa.train.pretrain.config import VAESettings


def make_vae(settings: VAESettings, size: int) -> Any:
    """A randomly initialised ``AutoencoderKL`` for ``size`` x ``size`` pictures."""
    from diffusers import AutoencoderKL

    levels = len(settings.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.groups,
        sample_size=size,
    )
    # At a log-variance of 0 the posterior's noise drowns the picture for hundreds of steps; start nearly without it.
    with torch.no_grad():
        vae.quant_conv.bias[settings.latent_channels :] = -6.0
    return vae


class VAEStep:
    """Mean absolute error plus ``kl_weight`` times the mean KL divergence per latent value.

    Args:
        vae: is trained.
        kl_weight: see above.
        bf16: run the autoencoder under bfloat16 autocast; the errors are summed in float32.
    """

    def __init__(self, vae: Any, kl_weight: float, bf16: bool) -> None:
        self.vae = vae
        self.kl_weight = kl_weight
        self.bf16 = bf16

    def __call__(self, batch: Tensor, step: int) -> StepOutput:
        """``batch``: pictures (B, 3, H, W) in -1..1."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.bf16):
            posterior = self.vae.encode(batch).latent_dist
            again = self.vae.decode(posterior.sample()).sample
        error = (again.float() - batch).abs().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return StepOutput(error + self.kl_weight * kl, {"l1": error.detach(), "kl": kl.detach()})


@torch.no_grad()
def set_scaling(vae: Any, pictures: Tensor, *, shifted: bool) -> None:
    """Store in the config what gives latents unit variance and, where ``shifted`` (for SD3), no mean."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    vae.register_to_config(
        scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()) if shifted else None
    )
