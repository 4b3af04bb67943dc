"""What a side network offers to pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

#: What text became (``lisa.mains.base.Context``): named tensors, batch first.
Context = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer that can be aligned: the input of the module at ``path``, its channels and its stride in the latent."""

    name: str
    path: str
    channels: int
    stride: int


class SideNetwork(Protocol):
    """A trainable network that reads the condition.

    ``module`` is at every moment a plain diffusers model; ``callee`` is what :meth:`forward` calls: the same module, or
    a wrapper around it for training on several devices.
    """

    kind: str
    module: nn.Module
    callee: Any

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """Residuals for the main network. ``t`` is what the network's timestep argument takes; ``condition``: pixels
        (B, 3, H, W) in 0..1.
        """

    def layers(self) -> list[Layer]:
        """What can be aligned, in order."""

    def zero_modules(self) -> list[nn.Module]:
        """The zero-initialised modules at the way out, which may get a learning rate of their own."""

    def save(self, folder: Path) -> None:
        """Write a diffusers folder (config.json and safetensors)."""
