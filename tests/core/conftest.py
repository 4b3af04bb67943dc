"""A side network small enough to reason about: strides 1 and 2, blocks that may be checkpointed, zero modules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.inner = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.tanh(self.first(hidden))))


class ToySide(nn.Module):
    """``checkpointing``: None, "reentrant" or "non-reentrant", of the block."""

    def __init__(self, checkpointing: str | None = None) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.block = Block(16)
        self.drop = nn.Dropout(0.1)
        self.norm = nn.BatchNorm2d(16)
        self.zeros = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        early = torch.tanh(self.conv_in(x))
        hidden = torch.tanh(self.down(early))
        if self.checkpointing:
            hidden = checkpoint(self.block, hidden, use_reentrant=self.checkpointing == "reentrant")
        else:
            hidden = self.block(hidden)
        return [self.zeros[0](early), self.zeros[1](hidden)]


@pytest.fixture
def make_side() -> Callable[..., ToySide]:
    def make(checkpointing: str | None = None, seed: int = 0) -> ToySide:
        torch.manual_seed(seed)
        return ToySide(checkpointing)

    return make
