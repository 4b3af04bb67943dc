"""What a condition embedding lets through before it has learnt anything."""

from __future__ import annotations

import pytest
import torch

import lisa
import tiny
from lisa.build.checks import check_condition_init
from lisa.common.errors import LisaError
from lisa.pairs import pair_names, pair_spec
from lisa.sides.controlnet import ControlNetSide
from lisa.sides.embedding import condition_embedding

# Of those with latents, tokens or an adapter of its own the conditions come in otherwise.
EMBEDDED = {"sd-controlnet", "sdxl-controlnet", "sdxl-controlnet-union", "animatediff-controlnet", "svd-controlnet"}


def strokes(count=16, size=64):
    """Conditions of one bright stroke each, on black."""
    pictures = torch.zeros(count, 3, size, size)
    for i, picture in enumerate(pictures):
        picture[:, 3 * i + 4 : 3 * i + 6, 8:-8] = 1
    return pictures


def spread(values):
    """Standard deviation between samples."""
    return float(values.var(dim=0).mean().sqrt())


def let_through(side, conditions):
    """What differs between conditions before the last convolution."""
    embedding, seen = condition_embedding(side.module), []
    with embedding.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])), torch.no_grad():
        embedding(conditions)
    return spread(seen[0])


def test_what_differs_comes_through_and_a_new_network_still_changes_nothing():
    """With the widths of Stable Diffusion's; diffusers' own start lets a thousandth of strokes through."""
    torch.manual_seed(0)
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    assert let_through(side, strokes()) < 2e-3 * spread(strokes())
    lisa.init_condition_embedding(side.module, strokes())
    # Of what the last SiLU makes of a spread of 1; for conditions like those that were measured, too.
    assert 0.3 < let_through(side, strokes()) < 1 and 0.3 < let_through(side, strokes(size=96)) < 1
    embedding = condition_embedding(side.module)
    assert not embedding(strokes()).any()
    biases = [layer.bias for layer in embedding.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(biases) == 8 and not any(bias.any() for bias in biases)


def test_what_all_conditions_share_is_no_measure():
    """A grey ground would else pass for the signal."""
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    on_grey = 0.5 + 0.01 * strokes()
    lisa.init_condition_embedding(side.module, on_grey)
    assert 0.2 < let_through(side, on_grey) < 3


@pytest.mark.parametrize("conditions", [torch.zeros(4, 3, 64, 64), strokes(1)])
def test_conditions_that_do_not_differ(conditions):
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    with pytest.raises(LisaError, match="conditions that do not differ cannot tell"):
        lisa.init_condition_embedding(side.module, conditions)


@pytest.mark.parametrize("name", pair_names())
def test_pairs_without_one_are_refused_by_their_name(name):
    check_condition_init("default", pair_spec(name))
    if name in EMBEDDED:
        check_condition_init("lsuv", pair_spec(name))
        return
    with pytest.raises(LisaError, match=r"^\w+ has no condition embedding made of convolutions"):
        check_condition_init("lsuv", pair_spec(name))
