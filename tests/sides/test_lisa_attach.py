"""lisa.attach on diffusers' own classes: the three lines, names, strides, dry runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sides_helpers import make_sdxl_like
from torch import nn
from torch.nn.functional import mse_loss

import lisa
import tiny
from lisa.common.errors import LisaError


@pytest.fixture
def controlnet():
    from diffusers import ControlNetModel

    torch.manual_seed(1)
    return tiny.randomise_zero_modules(ControlNetModel.from_unet(tiny.make_unet())).train()


def run(controlnet, height=8, width=8, batch=2, **more):
    text = torch.randn(batch, 5, tiny.TEXT_WIDTH)
    pixels = torch.rand(batch, 3, height * 8, width * 8)
    x_t, t = torch.randn(batch, 4, height, width), torch.randint(0, 1000, (batch,))
    down, mid = controlnet(x_t, t, text, controlnet_cond=pixels, return_dict=False, **more)
    return x_t, t, text, down, mid


def test_the_three_lines_in_a_loop_of_ones_own(controlnet):
    """The issue's lines, verbatim, on diffusers' real classes: no pair, no trainer."""
    torch.manual_seed(0)
    unet = tiny.make_unet().requires_grad_(False).eval()
    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)
    optimiser = torch.optim.AdamW([*controlnet.parameters(), *aligner.parameters()], lr=2e-3)
    decoder_before = [p.clone() for p in aligner.parameters()]
    target, seen = torch.randn(2, 4, 8, 8), []
    for _ in range(8):
        torch.manual_seed(7)
        x_t, t, text, down, mid = run(controlnet)
        controlled = unet(x_t, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        with torch.no_grad():
            prior = unet(x_t, t, text).sample
        terms = aligner(target=target, prior=prior, timesteps=t)
        loss = mse_loss(controlled, target) + terms.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append((float(terms.alignment), float(terms.r2)))
    assert seen[-1][0] < seen[0][0] and seen[-1][1] > seen[0][1] + 0.01
    assert abs(seen[0][1]) < 1e-6  # the decoder's way out starts at zero
    assert any(not torch.equal(a, b) for a, b in zip(decoder_before, aligner.parameters(), strict=True))
    assert terms.loss.item() == pytest.approx(0.2 * float(terms.alignment))
    aligner.remove()
    assert tiny.traces(controlnet) == {}


def test_parameters_are_the_decoders_only(controlnet):
    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)
    ours = {id(p) for p in aligner.parameters()}
    assert ours and not ours & {id(p) for p in controlnet.parameters()}


@pytest.mark.parametrize(
    ("layer", "strides"), [("down.0", [1]), ("down.5", [2]), ("mid", [8]), (["down.2", "down.11", "mid"], [1, 8, 8])]
)
def test_strides_are_measured(controlnet, layer, strides):
    measured = lisa.attach(controlnet, layer, out_channels=4)
    given = lisa.attach(controlnet, layer, out_channels=4, stride=strides)
    assert shapes(measured) == shapes(given)
    other = lisa.attach(controlnet, layer, out_channels=4, stride=[4] * len(strides))
    assert shapes(measured) != shapes(other)


def shapes(aligner):
    return {name: value.shape for name, value in aligner.state_dict().items()}


def test_dotted_paths_and_outputs(controlnet):
    torch.manual_seed(0)
    paths = ["mid_block", "down_blocks.1.resnets.0", "controlnet_cond_embedding.conv_out"]
    aligner = lisa.attach(controlnet, paths, out_channels=4, tap="output")
    x_t, t, *_ = run(controlnet, 10, 14)
    terms = aligner(torch.randn_like(x_t), x_t, t)
    assert set(terms.by_layer) == set(paths)


@pytest.mark.parametrize(("layer", "hint"), [("down.12", "down.1"), ("midd", "mid"), ("controlnet_down_block", "did")])
def test_unknown_layers_are_answered_with_what_there_is(controlnet, layer, hint):
    with pytest.raises(LisaError, match="has no layer") as caught:
        lisa.attach(controlnet, layer=layer, out_channels=4)
    message = str(caught.value)
    assert hint in message and "down.0, down.1" in message and "mid" in message
    assert tiny.traces(controlnet) == {}


def test_nothing_changes_by_attaching(controlnet):
    state = {name: value.clone() for name, value in controlnet.state_dict().items()}
    controlnet.mid_block.eval()  # a mode of its own, to be kept
    modes = [m.training for m in controlnet.modules()]
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in controlnet.modules()] == modes
    assert all(p.grad is None for p in controlnet.parameters())
    assert all(torch.equal(value, state[name]) for name, value in controlnet.state_dict().items())
    aligner.remove()
    assert tiny.traces(controlnet) == {}


def test_sdxl(controlnet):
    from diffusers import ControlNetModel

    network = ControlNetModel.from_unet(make_sdxl_like()).train()
    aligner = lisa.attach(network, layer=["down.8", "mid"], out_channels=4)
    added = {"text_embeds": torch.randn(2, 10), "time_ids": torch.randn(2, 6)}
    x_t, t, *_ = run(network, added_cond_kwargs=added)
    assert torch.isfinite(aligner(torch.randn_like(x_t), x_t, t).loss)
    with pytest.raises(LisaError, match=r"no layer 'down\.9'"):
        lisa.attach(network, layer="down.9", out_channels=4)


def test_union_controlnet():
    from diffusers import ControlNetUnionModel

    torch.manual_seed(0)
    config = {k: v for k, v in make_sdxl_like().config.items() if not k.startswith("_")}
    network = ControlNetUnionModel.from_config(
        {**config, "num_control_type": 3, "num_trans_channel": 8, "num_trans_head": 2, "num_trans_layer": 1,
         "num_proj_channel": 8, "conditioning_embedding_out_channels": (16, 32, 96, 256)}
    )  # fmt: skip
    assert shapes(lisa.attach(network, "mid", out_channels=4)) == shapes(
        lisa.attach(network, "mid", out_channels=4, stride=4)
    )


@pytest.mark.parametrize(
    "labels", [{"num_class_embeds": 3}, {"class_embed_type": "timestep"},
               {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7}], ids=str,
)  # fmt: skip
def test_class_labels(controlnet, labels):
    from diffusers import ControlNetModel

    network = ControlNetModel.from_config({**controlnet.config, **labels})
    lisa.attach(network, "mid", out_channels=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(controlnet, dtype):
    aligner = lisa.attach(controlnet.to(dtype), "down.5", out_channels=4)
    assert all(p.dtype == torch.float32 for p in aligner.parameters())


def test_compiled_wrapper(controlnet):
    wrapped = torch.compile(controlnet, backend="eager")
    aligner = lisa.attach(wrapped, layer="down.5", out_channels=4)
    assert aligner.layers == ("down.5",)


def test_subclasses_are_known_too(controlnet):
    class Mine(type(controlnet)):
        pass

    network = Mine.from_config(controlnet.config)
    lisa.attach(network, layer="down.5", out_channels=4)


def test_a_subclass_with_other_arguments_is_told_what_to_do(controlnet):
    class Mine(type(controlnet)):
        def forward(self, sample, depth):
            raise AssertionError("never called on zeros")

    network = Mine.from_config(controlnet.config)
    with pytest.raises(LisaError, match=r"Mine cannot be run on zeros.*Pass stride="):
        lisa.attach(network, layer="down.5", out_channels=4)
    assert tiny.traces(network) == {}
    lisa.attach(network, layer="down.5", out_channels=4, stride=2)


def test_unknown_classes_need_a_stride_or_a_dry_run():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 1))
    with pytest.raises(LisaError, match=r"dry_run=.*stride="):
        lisa.attach(network, layer="1", out_channels=4)

    def dry_run():
        network(torch.zeros(1, 4, 8, 8))
        return 8, 8

    measured = lisa.attach(network, layer="1", out_channels=4, dry_run=dry_run)
    assert shapes(measured) == shapes(lisa.attach(network, layer="1", out_channels=4, stride=2))


def test_weight_zero_leaves_the_network_alone(controlnet):
    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4, weight=0)
    assert not list(aligner.parameters()) and tiny.traces(controlnet) == {}


def test_attach_does_not_import_diffusers():
    code = (
        "import sys, torch, lisa\n"
        "n = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1))\n"
        "lisa.attach(n, '0', out_channels=4, stride=1)\n"
        "assert 'diffusers' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
