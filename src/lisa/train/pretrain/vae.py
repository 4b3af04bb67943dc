"""The autoencoder of a small model: AutoencoderKL (Rombach et al., arXiv 2112.10752, section 3.1), without a critic.

For clips its decoder is one of Stable Video Diffusion's, which decodes the frames of a clip together (arXiv 2311.15127,
section 4.1 and appendix D); the encoder takes every frame by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lisa.core.frames import fold, unfold
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
    _nearly_without_noise(vae)
    return vae


def make_temporal_vae(settings: VAESettings, size: int) -> Any:
    """A randomly initialised ``AutoencoderKLTemporalDecoder`` for clips of ``size`` x ``size`` pictures."""
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(settings.channels),
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        latent_channels=settings.latent_channels,
        sample_size=size,
    )
    _nearly_without_noise(vae)
    return vae


@torch.no_grad()
def _nearly_without_noise(vae: Any) -> None:
    """At a log-variance of 0 the posterior's noise drowns the picture for hundreds of steps; start below that."""
    vae.quant_conv.bias[vae.config.latent_channels :] = -6.0


def reconstruct(vae: Any, batch: Tensor, *, noise: bool) -> tuple[Any, Tensor]:
    """The posterior, and what is decoded from it.

    Args:
        vae: of pictures, or of clips.
        batch: pictures (B, 3, H, W), or clips (B, 3, F, H, W), in -1..1.
        noise: decode a sample of the posterior, not its mean.
    """
    posterior = vae.encode(fold(batch)).latent_dist
    latents = posterior.sample() if noise else posterior.mode()
    if batch.ndim == 4:
        return posterior, vae.decode(latents).sample
    frames = batch.shape[2]
    return posterior, unfold(vae.decode(latents, num_frames=frames).sample, frames)


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
        """``batch``: pictures (B, 3, H, W) or clips (B, 3, F, H, W) in -1..1."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.bf16):
            posterior, again = reconstruct(self.vae, batch, noise=True)
        error = (again.float() - batch).abs().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return StepOutput(error + self.kl_weight * kl, {"l1": error.detach(), "kl": kl.detach()})


@torch.no_grad()
def set_scaling(vae: Any, pictures: Tensor, *, shifted: bool) -> None:
    """Store in the config what gives latents unit variance and, where ``shifted`` (for SD3), no mean.

    The autoencoder of clips knows no shift.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    if "shift_factor" in vae.config:
        vae.register_to_config(shift_factor=float(latents.mean()) if shifted else None)
