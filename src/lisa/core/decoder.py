"""The decoder: a small network that must read the likelihood score off one feature of the side network.

It exists during training only. arXiv 2606.27192's reference decoder, for feature maps and tokens of any size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lisa.common.errors import LisaError

MIN_CHANNELS = 64
POINTWISE_FROM = 512  # with this many channels the first convolution is 1x1, to keep the decoder small
TIME_RANGE = 1000.0


def hidden_channels(in_channels: int, upsamples: int, min_channels: int = MIN_CHANNELS) -> list[int]:
    """What each of a decoder's hidden convolutions gives: halved per doubling, not below ``min_channels``."""
    channels = [in_channels]
    for _ in range(upsamples):
        channels.append(max(channels[-1] // 2, min_channels))
    return channels[1:] or channels


class LikelihoodDecoder(nn.Module):
    """Feature and timestep to likelihood score.

    The time embedding is added to the feature; then, per doubling, a convolution that halves the channels (not below
    64), SiLU and nearest upsampling; where nothing is to be doubled, one convolution and SiLU; at last an output
    convolution that starts at zero, so that the first prediction is the mean of a residual nothing is known of.

    Everything is computed in the precision of the decoder's own parameters (fp32), whatever the feature's, and also
    under autocast.

    Args:
        in_channels: channels of the feature.
        out_channels: channels of the residual.
        upsamples: doublings from the feature's size to the latent's: log2 of the feature's stride.
        time_channels: size of the sinusoidal embedding of the timestep.
        x_t_channels: where positive, ``forward`` takes the noisy latent too: for side networks that do not see it.
        min_channels: the halving stops there.

    Raises:
        LisaError: a size that is not positive, or an odd ``time_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        upsamples: int,
        *,
        time_channels: int = 256,
        x_t_channels: int = 0,
        min_channels: int = MIN_CHANNELS,
    ) -> None:
        super().__init__()
        if (
            min(in_channels, out_channels, time_channels, min_channels) < 1
            or min(upsamples, x_t_channels) < 0
            or time_channels % 2
        ):
            raise LisaError(
                f"a decoder with in_channels={in_channels}, out_channels={out_channels}, upsamples={upsamples}, "
                f"time_channels={time_channels}, x_t_channels={x_t_channels}, min_channels={min_channels} "
                "cannot be made",
                "Channels must be positive, upsamples and x_t_channels not negative, time_channels even",
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.upsamples, self.time_channels, self.x_t_channels = upsamples, time_channels, x_t_channels
        self.time = nn.Linear(time_channels, in_channels)
        self.stages = nn.ModuleList()
        channels = in_channels
        for stage, hidden in enumerate(hidden_channels(in_channels, upsamples, min_channels)):
            kernel = 1 if upsamples and stage == 0 and channels >= POINTWISE_FROM else 3
            self.stages.append(nn.Conv2d(channels, hidden, kernel, padding=kernel // 2))
            channels = hidden
        self.join = nn.Conv2d(channels + x_t_channels, channels, 3, padding=1) if x_t_channels else None
        self.out = nn.Conv2d(channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, timesteps: Tensor, size: tuple[int, int], x_t: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            feature: ``(B, C, h, w)``, or tokens ``(B, N, C)`` in row-major order.
            timesteps: ``(B,)``, 0 to 1000, whole or not.
            size: ``(H, W)`` of the latent.
            x_t: ``(B, x_t_channels, H, W)``, if the decoder was built to take it.

        Returns:
            ``(B, out_channels, H, W)``.

        Raises:
            LisaError: shapes that do not fit, or ``x_t`` missing.
        """
        with torch.autocast(feature.device.type, enabled=False):
            dtype = self.out.weight.dtype
            hidden = to_map(feature, size).to(dtype)
            self._check(hidden, timesteps, size, x_t)
            times = sinusoidal_embedding(timesteps, self.time_channels).to(dtype)
            hidden = hidden + F.silu(self.time(times))[:, :, None, None]
            for index, stage in enumerate(self.stages):
                hidden = F.silu(stage(hidden))
                if self.upsamples:
                    hidden = F.interpolate(hidden, size=_shrunk(size, self.upsamples - 1 - index), mode="nearest")
            if self.join is not None and x_t is not None:
                hidden = F.silu(self.join(torch.cat([hidden, x_t.to(dtype)], dim=1)))
            decoded: Tensor = self.out(hidden)
            return decoded

    def _check(self, feature: Tensor, timesteps: Tensor, size: tuple[int, int], x_t: Tensor | None) -> None:
        batch, channels, height, width = feature.shape
        if channels != self.in_channels:
            raise LisaError(f"the feature has {channels} channels, the decoder was built for {self.in_channels}")
        if timesteps.shape != (batch,):
            raise LisaError(
                f"timesteps of shape {tuple(timesteps.shape)} for {batch} features", "Give one timestep per sample"
            )
        stride = 2**self.upsamples
        for given, full in ((height, size[0]), (width, size[1])):
            if not full // stride <= given <= -(-full // stride):  # networks round odd sizes up, or down
                raise LisaError(
                    f"a feature of {height}x{width} is not a latent of {size[0]}x{size[1]} at stride {stride}",
                    "Give the layer's stride= when attaching, or pass target and feature of the same samples",
                )
        if self.x_t_channels and (x_t is None or x_t.shape != (batch, self.x_t_channels, *size)):
            given_shape = "none" if x_t is None else str(tuple(x_t.shape))
            raise LisaError(
                f"the decoder needs x_t of shape {(batch, self.x_t_channels, *size)} and was given {given_shape}",
                "Pass x_t= to the aligner, or attach with x_t_channels=0",
            )


def sinusoidal_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines and sines of ``timesteps`` (B,) at ``channels // 2`` frequencies: (B, channels), fp32 or wider."""
    times = timesteps.to(torch.promote_types(timesteps.dtype, torch.float32))
    half = channels // 2
    exponents = torch.arange(half, device=times.device, dtype=times.dtype) / half
    angles = times[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def to_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """A feature as a map: ``(B, C, h, w)`` as it is, tokens ``(B, N, C)`` laid out on the grid that ``size`` implies.

    Raises:
        LisaError: neither a map nor tokens, or no whole patch size divides ``size`` into N tokens.
    """
    if feature.ndim == 4:
        return feature
    if feature.ndim != 3:
        raise LisaError(
            f"a feature of shape {tuple(feature.shape)} is neither a map (B, C, h, w) nor tokens (B, N, C)",
            "Tap another layer",
        )
    batch, tokens, channels = feature.shape
    patch = token_patch(tokens, size)
    return feature.transpose(1, 2).reshape(batch, channels, size[0] // patch, size[1] // patch)


def token_patch(tokens: int, size: tuple[int, int]) -> int:
    """The side of the patches that cut a latent of ``size`` (H, W) into ``tokens``.

    Raises:
        LisaError: there is no such whole number.
    """
    patch = math.isqrt(size[0] * size[1] // max(tokens, 1))
    if patch < 1 or size[0] % patch or size[1] % patch or (size[0] // patch) * (size[1] // patch) != tokens:
        raise LisaError(
            f"{tokens} tokens are not a latent of {size[0]}x{size[1]} cut into square patches",
            "Tap a layer that holds the image's tokens only, or make the latent's size a multiple of the patch",
        )
    return patch


def _shrunk(size: tuple[int, int], times: int) -> tuple[int, int]:
    """``size`` halved ``times`` times, odd sizes rounded up, as a convolution of stride 2 and padding 1 does."""
    return -(-size[0] // 2**times), -(-size[1] // 2**times)
