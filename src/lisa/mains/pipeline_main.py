"""What all main networks that come as a diffusers pipeline have in common: encoders, decoder, devices, components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.mains.base import Context
from lisa.mains.casting import cast
from lisa.mains.codec import Codec
from lisa.mains.loading import Layout, is_single_file, load_pipeline
from lisa.mains.weights import FLOAT32, Weights, is_quantized
from lisa.processes.base import ForwardProcess


class PipelineMain:
    """The part of :class:`lisa.mains.base.MainNetwork` that does not depend on the architecture.

    A family derives from it and adds ``encode_text``, ``forward`` and ``shared_modules``; and ``encode_unconditional``
    where its pipelines do not encode the empty caption for the unconditional pass.

    Args:
        pipeline: of diffusers; its networks are frozen and put into eval mode, and keep the type they are in.
        source: where it came from.
        process: the forward process its scheduler tells.
        codec: of its autoencoder.
    """

    family: str
    #: whether it makes clips
    video = False
    #: what the context is made of: the ``caption``, or a clip's first ``frame``
    context_reads = "caption"
    network_name = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    #: what the family's pipelines take, by name
    components: tuple[str, ...] = ("vae", "text_encoder", "tokenizer", "transformer", "scheduler")
    #: pixels per token along one side, over the latent factor
    patch = 1
    #: arguments of the family's pipelines that depend on this network
    call_options: Mapping[str, Any] = {}
    #: the largest side of a latent that it has positions for; None: any
    latent_limit: int | None = None

    def __init__(self, pipeline: Any, source: str, process: ForwardProcess, codec: Codec) -> None:
        self.pipeline, self.source, self.process, self.codec = pipeline, source, process, codec
        self.network: nn.Module = getattr(pipeline, self.network_name)
        self.latent_channels, self.latent_factor = codec.channels, codec.factor
        self.condition_latent_channels = codec.channels
        self.size_multiple = codec.factor * self.patch
        self._read_again: Callable[[], Any] | None = None
        self._offloaded, self._home = "none", torch.device("cpu")
        self._dropped: dict[str, bool] = {}  # whether there was one
        self.network.requires_grad_(False).eval()
        self._freeze_encoders()

    @classmethod
    def load(
        cls,
        layout: Layout,
        source: str,
        *,
        variant: str | None = None,
        config: str | None = None,
        weights: Weights = FLOAT32,
    ) -> Self:
        """Read a main network of this family; see :func:`lisa.mains.loading.load_pipeline`."""
        read = partial(load_pipeline, layout, source, variant=variant, config=config, weights=weights)
        main = cls(read(), source)
        if not is_single_file(source):
            main._read_again = partial(read, network=False)
        return main

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The family's."""
        raise NotImplementedError

    def encode_unconditional(self) -> dict[str, Tensor]:
        """The empty caption's context, one row."""
        return self.encode_text([""])

    def encode_frame(self, frames: Tensor, rate: Tensor, motion: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """The family's, where ``context_reads`` is ``frame``."""
        raise NotImplementedError

    def latent_frames(self, frames: int) -> int:
        """One for each, unless the family's autoencoder shortens clips."""
        return frames

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
        for name in ("vae", *self.text_encoders):
            self._dropped[name] = self._dropped.get(name, False) or getattr(self.pipeline, name) is not None
            setattr(self.pipeline, name, None)

    def offload_encoders(self, to: str) -> None:
        """Move the text encoders and the VAE off the accelerator (``cpu``), or let go of them (``disk``).

        Nothing can be encoded or decoded then but inside :meth:`encoders`. ``none`` leaves them where they are.

        Raises:
            LisaError: ``disk``, and they cannot be read again (a single file, a pipeline made in memory).
        """
        if to == "none":
            return
        if to == "disk" and self._read_again is None:
            raise LisaError(
                f"the encoders of {self.source!r} cannot be read again by themselves",
                "Set model.offload_encoders=cpu, or use the model's folder in diffusers' layout",
            )
        from diffusers.training_utils import free_memory

        if self._offloaded == "none":
            self._home = self.pipeline.vae.device
        self._offloaded = to
        if to == "disk":
            self.drop_encoders()
        else:
            self.to(torch.device("cpu"), only="encoders")
        free_memory()

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Inside, encoders that were offloaded are back; once it is over they are offloaded again. May be nested."""
        to = self._offloaded
        try:
            if to == "disk":
                self._read_encoders()
            if to != "none":
                self.to(self._home, only="encoders")
                self._offloaded = "none"
            yield
        finally:
            self.offload_encoders(to)

    def _read_encoders(self) -> None:
        assert self._read_again is not None
        pipeline = self._read_again()
        for name in ("vae", *self.text_encoders):
            setattr(self.pipeline, name, getattr(pipeline, name))
        self._dropped = {}
        self._freeze_encoders()

    def _freeze_encoders(self) -> None:
        for part in ("image", "text"):
            for module in self.encoder_modules(part):
                module.requires_grad_(False).eval()

    def component(self, name: str, *, optional: bool = False) -> Any:
        """A component of the pipeline.

        Raises:
            LisaError: it was dropped from memory, or it is not there and not ``optional``.
        """
        module = getattr(self.pipeline, name)
        if module is None and (self._dropped.get(name, False) or not optional):
            raise LisaError(f"the {name} was dropped from memory", "Load the main network again")
        return module

    def encoder_device(self, name: str = "text_encoder") -> torch.device:
        """Where a text encoder is.

        Raises:
            LisaError: it was dropped from memory.
        """
        device: torch.device = next(self.component(name).parameters()).device
        return device

    def to(self, device: torch.device, dtype: torch.dtype | None = None, *, only: str | None = None) -> None:
        """The VAE stays in float32, and quantised weights where and what they are (see ``lisa.mains.weights``)."""
        names = {"network": [self.network_name], "encoders": ["vae", *self.text_encoders]}
        for name in names[only] if only is not None else [*names["network"], *names["encoders"]]:
            module = getattr(self.pipeline, name)
            if module is not None and not is_quantized(module):
                cast(module, device, dtype if name != "vae" or dtype is None else torch.float32)
