"""What of a condition comes into a side network before it has learnt anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lisa
import tiny
from lisa.build.checks import check_condition_init
from lisa.common.errors import LisaError
from lisa.pairs import pair_names, pair_spec
from lisa.sides import embedding
from lisa.sides.controlnet import ControlNetSide
from lisa.sides.embedding import condition_embedding

# Adapters are all of their own, and VACE's branch does not start at zero where its condition comes in.
WITHOUT = {"sd-t2i-adapter", "sdxl-t2i-adapter", "wan-vace"}


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


def start(side, conditions, size=8):
    """As the training does: by calling the whole network."""
    calls = []

    def run(batch):
        calls.append(len(batch))
        text = torch.zeros(len(batch), 3, side.module.config.cross_attention_dim)
        side.forward(torch.randn(len(batch), 4, 8, 8), 5, {"encoder_hidden_states": text}, batch)
        raise AssertionError("it is cut short")

    lisa.init_condition_embedding(side.module, run, conditions.split(size))
    return calls


def test_what_differs_comes_through_a_chain_of_convolutions():
    """With the widths of Stable Diffusion's; diffusers' own start lets a thousandth of strokes through."""
    torch.manual_seed(0)
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    assert let_through(side, strokes()) < 2e-3 * spread(strokes())
    assert start(side, strokes()) == [8, 8]
    # Of what the last SiLU makes of a spread of 1; of conditions like those that were measured, too.
    assert 0.3 < let_through(side, strokes()) < 1 and 0.3 < let_through(side, strokes(size=96)) < 1
    embedding = condition_embedding(side.module)
    assert not embedding(strokes()).any(), "a new side network still changes nothing"
    biases = [layer.bias for layer in embedding.modules() if isinstance(layer, nn.Conv2d)]
    assert len(biases) == 8 and not any(bias.any() for bias in biases)


def test_what_all_conditions_share_is_no_measure():
    """A grey ground would else pass for the signal."""
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    on_grey = 0.5 + 0.01 * strokes()
    start(side, on_grey)
    assert 0.2 < let_through(side, on_grey) < 3


@pytest.mark.parametrize("linear", [True, False])
def test_through_a_single_layer_comes_what_differs_and_nothing_else(linear):
    """Tokens (B, N, C), or the latent (B, C, h, w) cut into patches."""
    layer = nn.Linear(6, 12) if linear else nn.Conv2d(6, 12, 2, stride=2)
    network = nn.Module()
    if linear:
        network.controlnet_x_embedder = layer
    else:
        network.pos_embed_input = nn.Module()
        network.pos_embed_input.proj = layer
    nn.init.zeros_(layer.weight)
    given = 5 + 0.1 * (torch.randn(32, 9, 6) if linear else torch.randn(32, 6, 8, 8))
    lisa.init_condition_embedding(network, layer, [given[:20], given[20:]])
    out = layer(given).detach()
    assert spread(out) == pytest.approx(1, rel=0.02)
    assert out.movedim(-1 if linear else 1, 0).flatten(1).mean(dim=1).abs().max() < 1e-3


def test_captions_that_come_in_by_the_same_layer_are_no_measure():
    """As Z-Image has it: the picture's tokens first, then the caption's, as many as there are."""

    class ZImageControlNetModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.control_layers = nn.ModuleList([nn.Module()])
            self.control_layers[0].before_proj = nn.Linear(6, 12)

    torch.manual_seed(0)
    network = ZImageControlNetModel()
    layer = network.control_layers[0].before_proj
    given = 5 + 0.1 * torch.randn(32, 12, 6)  # a latent of 8x6
    parts = zip(given.split(16), (3, 5), strict=True)
    with_captions = [torch.cat([part, 3 * torch.randn(16, tokens, 6)], dim=1) for part, tokens in parts]
    lisa.init_condition_embedding(network, layer, with_captions, latent=(8, 6))
    out = layer(given).detach()
    assert spread(out) == pytest.approx(1, rel=0.02)
    assert out.movedim(-1, 0).flatten(1).mean(dim=1).abs().max() < 1e-3
    same = [torch.cat([given[:1].expand(16, -1, -1), each[:, 12:]], dim=1) for each in with_captions]
    with pytest.raises(LisaError, match="32 conditions that do not differ"):
        lisa.init_condition_embedding(network, layer, same, latent=(8, 6))
    with pytest.raises(LisaError, match=r"come captions, too.*Pass latent="):
        lisa.init_condition_embedding(network, layer, with_captions)


@pytest.mark.parametrize("conditions", [torch.zeros(4, 3, 64, 64), strokes(1)])
def test_conditions_that_do_not_differ(conditions):
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    with pytest.raises(LisaError, match="conditions that do not differ cannot tell"):
        start(side, conditions)
    assert not condition_embedding(side.module)._forward_pre_hooks


def test_many_large_pictures_are_measured_by_a_few_of_them(monkeypatch):
    """A first convolution over all frames of a clip would take gigabytes."""
    monkeypatch.setattr(embedding, "_PIXELS", 4 * 64 * 64)
    monkeypatch.setattr(embedding, "_FEWEST", 2)
    given = embedding._measured([strokes(9), strokes(8)], pixels=True)
    assert len(given) == 4 and len(embedding._measured([strokes(9), strokes(8)], pixels=False)) == 17


def test_a_network_that_is_not_called():
    side = ControlNetSide.from_main(tiny.make_unet(), 8)
    with pytest.raises(LisaError, match="no condition came in"):
        lisa.init_condition_embedding(side.module, len, [strokes()])


@pytest.mark.parametrize("name", pair_names())
def test_pairs_without_one_are_refused_by_their_name(name):
    for wanted in ("default", "auto"):
        check_condition_init(wanted, pair_spec(name))
    if name not in WITHOUT:
        check_condition_init("lsuv", pair_spec(name))
        return
    with pytest.raises(LisaError, match=r"^\w+ has no embedding of its condition that could start in another way"):
        check_condition_init("lsuv", pair_spec(name))
