"""What a main network (base model) offers to pairs: text, latents, the forward pass, and nothing about training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lisa.processes.base import ForwardProcess

#: What text becomes: named tensors, batch first. Each family has its own names; pairs pass them on unread.
Context = Mapping[str, Tensor]


class MainNetwork(Protocol):
    """A frozen, pretrained denoiser with its encoders.

    ``network`` is the plain diffusers model. Encoders may leave memory (:meth:`offload_encoders`) once what they give
    is cached. Pixels are (B, 3, H, W) in -1..1, latents (B, C, H / factor, W / factor), already shifted and scaled:
    maps in every family, whatever the network packs them into. Of a video network pixels and conditions are
    (B, 3, F, H, W), latents (B, C, f, h, w) with f = ``latent_frames(F)``, and there is one time per clip.
    """

    family: str
    video: bool  # whether it makes clips
    context_reads: str  # what the context is made of: the "caption", or a clip's first "frame" (``encode_frame``)
    network: nn.Module
    process: ForwardProcess
    latent_channels: int
    condition_latent_channels: int  # of what ``encode_condition`` gives
    latent_factor: int
    size_multiple: int  # both sides of a picture, in pixels, must be multiples of it
    source: str  # path or Hub name, as the user gave it
    latent_limit: int | None  # the largest side of a latent that it has positions for; None: any
    call_options: Mapping[str, Any]  # arguments of the family's pipelines that depend on this network

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions to context."""

    def encode_unconditional(self) -> dict[str, Tensor]:
        """The context of a dropped caption, one row: what the pipeline gives its unconditional pass."""

    def encode_frame(self, frames: Tensor, rate: Tensor, motion: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """First frames (B, 3, H, W) in -1..1 to context, where that is what it is made of.

        Args:
            frames: the clips' first ones.
            rate: (B,), frames per second.
            motion: (B,), how much moves, as the network counts it.
            keys: of the samples; what is random is drawn from them, so that the context can be cached.
        """

    def latent_frames(self, frames: int) -> int:
        """How many latent frames a clip of ``frames`` frames has; a LisaError where they do not fit."""

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """What both passes need beside the encoded text and what depends on the batch: sizes, positions, guidance."""

    def encode_moments(self, pixels: Tensor) -> Tensor:
        """Pixels to scaled posterior mean and standard deviation, (B, 2 C, h, w)."""

    def encode_condition(self, pixels: Tensor) -> Tensor:
        """Pixels of a condition (B, 3, H, W) in 0..1 to its latent, for side networks that read latents.

        (B, ``condition_latent_channels``, h, w); of clips with frames before the rows.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels in -1..1."""

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """The prediction for ``x_t`` at process time ``t``; ``residuals`` as the side network gave them."""

    def shared_modules(self) -> list[nn.Module]:
        """Modules upstream of where the family's ControlNet enters; a pair decides whether they may be shared."""

    def pipeline_components(self) -> dict[str, Any]:
        """What this family's diffusers pipelines are made of."""

    def encoder_modules(self, part: str) -> list[nn.Module]:
        """The modules that encode ``"image"`` or ``"text"``: what they give is cached under a hash of their weights."""

    def drop_encoders(self) -> None:
        """Free text encoders and VAE; encoding afterwards is an error that says so."""

    def offload_encoders(self, to: str) -> None:
        """Text encoders and VAE off the accelerator (``cpu``) or out of memory (``disk``); ``none``: nothing."""

    def encoders(self) -> AbstractContextManager[None]:
        """Inside, offloaded encoders are back, to sample; may be nested."""

    def to(self, device: torch.device, dtype: torch.dtype | None = None, *, only: str | None = None) -> None:
        """Move (and cast) network and encoders, or ``only`` the ``network`` or the ``encoders``."""


def latents_from_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """A sample of the posterior whose scaled mean and standard deviation are ``moments`` (B, 2 C, h, w)."""
    mean, deviation = moments.chunk(2, dim=1)
    return mean + deviation * noise
