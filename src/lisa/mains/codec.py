"""Latents of the autoencoders that main networks come with: shifted, scaled, and back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lisa.core.frames import fold, frames_together, unfold


class Codec(Protocol):
    """Pixels (B, 3, H, W) in -1..1 to latents (B, ``channels``, H / ``factor``, W / ``factor``) and back.

    The autoencoder is handed in at every call, because it may have left memory in between.
    """

    channels: int
    factor: int

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """Posterior mean and standard deviation, shifted and scaled: (B, 2 channels, h, w)."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels."""


class KLCodec:
    """``AutoencoderKL``: one scaling factor, and a shift where the configuration has one (SD3, Flux).

    Args:
        vae: read for its configuration only.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scaling = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See :class:`Codec`."""
        posterior = vae.encode(pixels).latent_dist
        return torch.cat([(posterior.mean - self.shift) * self.scaling, posterior.std * self.scaling], dim=1)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`."""
        pixels: Tensor = vae.decode(latents / self.scaling + self.shift).sample
        return pixels


class FrameCodec(KLCodec):
    """``AutoencoderKL``, used for each frame of a clip by itself (AnimateDiff): (B, C, f, h, w).

    Args:
        vae: read for its configuration only.
    """

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See :class:`Codec`; (B, 2 channels, F, h, w)."""
        parts = fold(pixels).split(frames_together(*pixels.shape[-2:]))
        return unfold(torch.cat([KLCodec.moments(self, vae, part) for part in parts]), pixels.shape[2])

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`; (B, 3, F, H, W)."""
        parts = fold(latents).split(self._together(latents))
        return unfold(torch.cat([KLCodec.decode(self, vae, part) for part in parts]), latents.shape[2])

    def _together(self, latents: Tensor) -> int:
        height, width = latents.shape[-2:]
        return frames_together(height * self.factor, width * self.factor)


class DCCodec:
    """``AutoencoderDC`` (Sana): no posterior, so that the deviation is zero; one scaling factor.

    Args:
        vae: read for its configuration only.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.encoder_block_out_channels) - 1)
        self.scaling = float(config.scaling_factor)

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See :class:`Codec`."""
        mean = vae.encode(pixels).latent * self.scaling
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`."""
        pixels: Tensor = vae.decode(latents / self.scaling).sample
        return pixels


class WanCodec:
    """``AutoencoderKLWan``: of clips (B, 3, F, H, W), causal in time; a mean and a deviation per channel.

    Args:
        vae: read for its configuration only.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.channels = int(config.z_dim)
        self.factor = 2 ** len(config.temperal_downsample)
        self.every = 2 ** sum(config.temperal_downsample)  # frames per latent frame, after the first
        self.mean = torch.tensor(config.latents_mean).reshape(1, -1, 1, 1, 1)
        self.deviation = torch.tensor(config.latents_std).reshape(1, -1, 1, 1, 1)

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See :class:`Codec`; (B, 2 channels, f, h, w)."""
        posterior = vae.encode(pixels).latent_dist
        scale = self.deviation.to(posterior.mean)
        mean = (posterior.mean - self.mean.to(scale)) / scale
        return torch.cat([mean, posterior.std / scale], dim=1)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`; (B, 3, F, H, W)."""
        pixels: Tensor = vae.decode(latents * self.deviation.to(latents) + self.mean.to(latents)).sample
        return pixels


class QwenImageCodec(WanCodec):
    """``AutoencoderKLQwenImage``: a video's autoencoder, used for one frame."""

    def moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See :class:`Codec`."""
        return super().moments(vae, pixels[:, :, None])[:, :, 0]

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`."""
        return super().decode(vae, latents[:, :, None])[:, :, 0]


class TemporalDecoderCodec(FrameCodec):
    """``AutoencoderKLTemporalDecoder`` (SVD): frames are encoded each by itself, and those of a clip decoded together,
    large ones some at a time.

    Args:
        vae: read for its configuration only.
    """

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See :class:`Codec`; (B, 3, F, H, W), clip by clip."""
        together = self._together(latents)
        parts = [part for clip in latents.split(1) for part in (fold(clip) / self.scaling).split(together)]
        frames = [vae.decode(part, num_frames=len(part)).sample for part in parts]
        return unfold(torch.cat(frames), latents.shape[2])
