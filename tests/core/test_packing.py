"""Packed latents: which cell lands where."""

from __future__ import annotations

import torch

from lisa.core.packing import pack, unpack


def test_a_token_is_two_by_two_cells_channel_by_channel():
    maps = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    tokens = pack(maps)
    assert tokens.shape == (1, 2 * 3, 8)
    row, column = 1, 2  # of the grid of tokens
    cells = maps[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    assert tokens[0, row * 3 + column].tolist() == cells.flatten().tolist()


def test_unpacking_is_the_way_back():
    maps = torch.randn(2, 3, 6, 10)
    assert torch.equal(unpack(pack(maps), (6, 10)), maps)
