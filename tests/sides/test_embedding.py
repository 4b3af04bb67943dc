"""What a condition embedding lets through before it has learnt anything."""

from __future__ import annotations

import pytest
import torch

import tiny
from lisa.build.checks import check_condition_init
from lisa.common.errors import LisaError
from lisa.pairs import pair_names, pair_spec
from lisa.sides.controlnet import ControlNetSide
from lisa.sides.embedding import condition_embedding, keep_variance

# Of those with latents, tokens or an adapter of its own the conditions come in otherwise.
EMBEDDED = {"sd-controlnet", "sdxl-controlnet", "sdxl-controlnet-union", "animatediff-controlnet", "svd-controlnet"}


def strokes(count=16, size=64):
    """Conditions of one bright stroke each, on black."""
    pictures = torch.zeros(count, 3, size, size)
    for i, picture in enumerate(pictures):
        picture[:, 3 * i + 4 : 3 * i + 6, 8:-8] = 1
    return pictures


def let_through(side, conditions):
    """Spread over the conditions before the last convolution, as a share of what came in."""
    embedding, seen = condition_embedding(side), []
    with embedding.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])), torch.no_grad():
        embedding(conditions)
    return float(seen[0].var(dim=0).mean().sqrt() / conditions.var(dim=0).mean().sqrt())


def test_strokes_come_through_and_a_new_network_still_changes_nothing():
    """With the widths of Stable Diffusion's; diffusers' own start lets a thousandth through."""
    torch.manual_seed(0)
    unet = tiny.make_unet()
    side = ControlNetSide.from_main(unet, 8)
    before = let_through(side, strokes())
    keep_variance(side)
    assert before < 2e-3 and 0.1 < let_through(side, strokes()) < 10
    assert not condition_embedding(side)(strokes()).any()
    biases = [layer.bias for layer in condition_embedding(side).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(biases) == 8 and not any(bias.any() for bias in biases)


@pytest.mark.parametrize("name", pair_names())
def test_pairs_without_one_are_refused_by_their_name(name):
    check_condition_init("default", pair_spec(name))
    if name in EMBEDDED:
        check_condition_init("kaiming", pair_spec(name))
        return
    with pytest.raises(LisaError, match=r"condition_init=kaiming: \w+ has no condition embedding made of convolutions"):
        check_condition_init("kaiming", pair_spec(name))
