"""What all main networks that come as a diffusers pipeline have in common: encoders, decoder, devices, components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.mains.base import Context
from lisa.mains.codec import Codec
from lisa.processes.base import ForwardProcess


class PipelineMain:
    """The part of :class:`lisa.mains.base.MainNetwork` that does not depend on the architecture.

    A family derives from it and adds ``encode_text``, ``forward`` and ``shared_modules``; and ``encode_unconditional``
    where its pipelines do not encode the empty caption for the unconditional pass.

    Args:
        pipeline: of diffusers; its networks are frozen, put into eval mode and, but for the main one, into float32.
        source: where it came from.
        process: the forward process its scheduler tells.
        codec: of its autoencoder.
    """

    family: str
    network_name = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    #: what the family's pipelines take, by name
    components: tuple[str, ...] = ("vae", "text_encoder", "tokenizer", "transformer", "scheduler")
    #: pixels per token along one side, over the latent factor
    patch = 1

    def __init__(self, pipeline: Any, source: str, process: ForwardProcess, codec: Codec) -> None:
        self.pipeline, self.source, self.process, self.codec = pipeline, source, process, codec
        self.network: nn.Module = getattr(pipeline, self.network_name)
        self.latent_channels, self.latent_factor = codec.channels, codec.factor
        self.size_multiple = codec.factor * self.patch
        self.network.requires_grad_(False).eval().float()
        for name in ("vae", *self.text_encoders):
            module = getattr(pipeline, name)
            if module is not None:
                module.requires_grad_(False).eval().float()

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The family's."""
        raise NotImplementedError

    def encode_unconditional(self) -> dict[str, Tensor]:
        """The empty caption's context, one row."""
        return self.encode_text([""])

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """The context as it is; families whose networks also want sizes, positions or a guidance vector add them."""
        return context

    def encode_moments(self, pixels: Tensor) -> Tensor:
        """Scaled posterior mean and standard deviation."""
        vae = self.component("vae")
        with torch.no_grad():
            return self.codec.moments(vae, pixels.to(vae.device, vae.dtype))

    def encode_condition(self, pixels: Tensor) -> Tensor:
        """Pixels of a condition in 0..1 to its scaled mean latent, for side networks that read latents.

        Pipelines draw a sample of the posterior, whose deviation is far below what a network could tell apart; the mean
        is the same at every visit and can be cached.
        """
        mean, _ = self.encode_moments(pixels * 2 - 1).chunk(2, dim=1)
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in -1..1."""
        vae = self.component("vae")
        with torch.no_grad():
            return self.codec.decode(vae, latents.to(vae.device, vae.dtype))

    def pipeline_components(self) -> dict[str, Any]:
        """What the family's pipelines are made of, without a safety checker."""
        for name in ("vae", *self.text_encoders):
            self.component(name, optional=True)
        return {name: self.pipeline.components[name] for name in self.components}

    def encoder_modules(self, part: str) -> list[nn.Module]:
        """The modules that encode ``"image"`` or ``"text"``."""
        names = ("vae",) if part == "image" else self.text_encoders
        found = [self.component(name, optional=True) for name in names]
        return [module for module in found if module is not None]

    def drop_encoders(self) -> None:
        """Free the text encoders and the VAE."""
        self._dropped = {name: getattr(self.pipeline, name) is not None for name in ("vae", *self.text_encoders)}
        for name in self._dropped:
            setattr(self.pipeline, name, None)

    def component(self, name: str, *, optional: bool = False) -> Any:
        """A component of the pipeline.

        Raises:
            LisaError: it was dropped from memory, or it is not there and not ``optional``.
        """
        module = getattr(self.pipeline, name)
        dropped: Mapping[str, bool] = getattr(self, "_dropped", {})
        if module is None and (dropped.get(name, False) or not optional):
            raise LisaError(f"the {name} was dropped from memory", "Load the main network again")
        return module

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """The VAE stays in float32: SD's overflows in float16 and its latents are worth the precision."""
        types = {self.network_name: dtype, **dict.fromkeys(self.text_encoders, dtype), "vae": torch.float32}
        for name, kind in types.items():
            module = getattr(self.pipeline, name)
            if module is not None:
                nn.Module.to(module, device, kind)  # diffusers' own to() warns about nothing with every cast
