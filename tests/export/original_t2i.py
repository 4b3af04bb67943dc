"""The structure of the original T2I-Adapters, written from the published description, to load exported files into."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu


class Block(nn.Module):
    """Halving, change of width, and a residual: each where it is needed."""

    def __init__(self, before: int, width: int, down: bool, kernel: int = 1) -> None:
        super().__init__()
        self.down = down
        self.in_conv = None if before == width else nn.Conv2d(before, width, 1)
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = avg_pool2d(x, 2) if self.down else x
        x = x if self.in_conv is None else self.in_conv(x)
        return x + self.block2(relu(self.block1(x)))


class FullAdapter(nn.Module):
    """All residual blocks in one row, two per level; ``halved``: levels that begin at half the size."""

    def __init__(self, channels: int, widths: Sequence[int], factor: int, halved: Sequence[int]) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(factor)
        self.conv_in = nn.Conv2d(channels * factor**2, widths[0], 3, padding=1)
        self.body = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            self.body.append(Block(before, width, level in halved))
            self.body.append(Block(width, width, False))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.conv_in(self.unshuffle(x)), []
        for number, block in enumerate(self.body):
            x = block(x)
            if number % 2:
                features.append(x)
        return features


class Extractor(nn.Module):
    def __init__(self, before: int, width: int, blocks: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.in_conv = nn.Conv2d(before, width // 4, 1)
        self.body = nn.Sequential(*[Block(width // 4, width // 4, False, kernel=3) for _ in range(blocks)])
        self.out_conv = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(avg_pool2d(x, 2) if self.down else x)))


class LightAdapter(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int], factor: int, blocks: int) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(factor)
        before = [channels * factor**2, *widths[:-1]]
        self.body = nn.ModuleList(
            Extractor(a, b, blocks, level > 0) for level, (a, b) in enumerate(zip(before, widths, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.unshuffle(x), []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features
