"""What a side network offers to pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from lisa.sides.loading import Names, forget_origin, load_module
from lisa.sides.low_rank import without_adapters

#: What text became (``lisa.mains.base.Context``): named tensors, batch first.
Context = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer that can be aligned: the input of the module at ``path``, its channels and its stride in the latent."""

    name: str
    path: str
    channels: int
    stride: int


@dataclass(frozen=True)
class SideOptions:
    """How a new side network is made.

    Attributes:
        depth: blocks of a side network that is a stack of blocks; None: the custom of its family.
        conditions: condition pictures that it reads at once, stacked along the channels.
    """

    depth: int | None = None
    conditions: int = 1

    @property
    def condition_channels(self) -> int:
        """Channels of the stacked conditions, in pixels."""
        return 3 * self.conditions


class SideNetwork(Protocol):
    """A trainable network that reads the condition.

    ``module`` is at every moment a plain diffusers model; ``callee`` is what :meth:`forward` calls: the same module, or
    a wrapper around it for training on several devices.
    """

    kind: str
    module: nn.Module
    callee: Any
    reads: str  # "pixels" (B, 3 n, H, W) in 0..1, or "latents" as the main network's ``encode_condition`` makes them
    tap: str  # where features are caught: the "input" or the "output" of a layer's module
    sees_x_t: bool  # if not, the decoder is given the noisy latent beside the feature
    lora_targets: tuple[str, ...]  # ends of the names of layers that adapters are put on; none: it is no copy
    latent_limit: int | None  # the largest side of a latent that it has positions for; None: any
    call_options: Mapping[str, Any]  # its values in arguments of the pipelines that list one per side network

    @property
    def condition_channels(self) -> int:
        """Channels of the pictures it reads: 3 for each of the stacked conditions."""

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """Residuals for the main network. ``x_t`` and ``t`` are what the network's arguments take (the process's
        ``model_input`` and ``model_time``); ``condition``: what ``reads`` says.
        """

    def layers(self) -> list[Layer]:
        """What can be aligned, in order."""

    def zero_modules(self) -> list[nn.Module]:
        """The zero-initialised modules at the way out, which may get a learning rate of their own."""

    def new_parameters(self) -> list[nn.Parameter]:
        """What a copy does not have from the main network: beside low-rank adapters, it is trained in full."""

    def whole(self) -> AbstractContextManager[None]:
        """A context in which ``module`` can be called by itself, with whatever it borrows from the main network."""

    def save(self, folder: Path) -> None:
        """Write a diffusers folder (config.json and safetensors), with adapters merged in."""


class DiffusersSide:
    """The part of :class:`SideNetwork` that does not depend on the architecture.

    Args:
        module: of diffusers.
    """

    kind: str
    package = "diffusers"  # where the class ``kind`` is imported from
    reads = "pixels"
    tap = "input"
    sees_x_t = True
    lora_targets: tuple[str, ...] = ()
    #: for a module, its parameters' names as the code that the kind comes from has them; None: there is no such layout
    original_names: ClassVar[Names | None] = None
    latent_limit: int | None = None
    call_options: Mapping[str, Any] = {}

    def __init__(self, module: Any) -> None:
        self.module: nn.Module = module
        self.callee: Any = module  # what forward() calls: the trainer puts the distributed wrapper here

    @property
    def condition_channels(self) -> int:
        """Those of one picture: what reads latents reads no more."""
        return 3

    @classmethod
    def from_folder(cls, source: str, default_config: Callable[[], Mapping[str, Any]] | None = None) -> Self:
        """An existing side network of this kind; see :func:`lisa.sides.loading.load_module`."""
        names = cls.original_names
        found = load_module(cls.kind, source, package=cls.package, original_names=names, default_config=default_config)
        return cls(found.float())

    def zero_modules(self) -> list[nn.Module]:
        """The family's."""
        raise NotImplementedError

    def new_parameters(self) -> list[nn.Parameter]:
        """Those of the zero modules, one of which reads the condition's latent in most families."""
        return [parameter for module in self.zero_modules() for parameter in module.parameters()]

    def whole(self) -> AbstractContextManager[None]:
        """Nothing to add: it borrows nothing."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """Write a diffusers folder."""
        with without_adapters(self.module):
            self.module.save_pretrained(folder)
        forget_origin(folder)
