"""A pattern planted at one place of what a side network reads, and where its features change."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lisa.core.feature_tap import FeatureTap
from lisa.pairs import Inputs, Pair
from lisa.sides.attach import default_select
from lisa.sides.base import Layer


def plant(pair: Pair, inputs: Inputs, where: str, block: int, place: tuple[int, int]) -> Inputs:
    """``inputs`` with one square brighter: of ``block`` cells of the latent, in x_t or the condition."""
    changed = getattr(inputs, where).clone()
    side = block * (pair.main.latent_factor if where == "condition" and pair.side.reads == "pixels" else 1)
    y, x = (number * side for number in place)
    changed[..., y : y + side, x : x + side] += 1.0
    return replace(inputs, **{where: changed})


def change_of_feature(pair: Pair, layer: Layer, ours: Inputs, theirs: Inputs, size: tuple[int, int]) -> Tensor:
    """How much each place of the feature differs, (B, h, w): caught and cut out as the aligner does it."""
    tap = FeatureTap(pair.side.module, layer.path, pair.side.tap, select=default_select(pair.side.module))
    features = []
    for inputs in (ours, theirs):
        with torch.no_grad(), tap.observing():
            pair.run_side(inputs)
        features.append(tap.read(size))
    tap.remove()
    difference = (features[1] - features[0]).abs()
    # Maps have channels second, frames of clips in the batch or after them; tokens have channels last.
    difference = difference.sum(2 if difference.ndim == 3 else 1)
    height, width = (side // layer.stride for side in size)
    return difference.reshape(len(ours.x_t), -1, height, width).sum(1)
