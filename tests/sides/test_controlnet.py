"""ControlNetModel as a side network: made, loaded, its layers, saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sides_helpers import make_sdxl_like

import tiny
from lisa.common.errors import LisaError
from lisa.core.feature_tap import FeatureTap
from lisa.sides.attach import default_dry_run
from lisa.sides.controlnet import ControlNetSide
from lisa.sides.layers import layer_names

SD_STRIDES = [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8]
CASES = {
    "sd": (tiny.make_unet, 8, SD_STRIDES),
    "sd 2.1": (lambda: tiny.make_unet(v2=True), 8, SD_STRIDES),
    "sdxl": (make_sdxl_like, 8, [1, 1, 1, 2, 2, 2, 4, 4, 4, 4]),
    "factor 4": (lambda: tiny.make_unet(levels=3), 4, [1, 1, 1, 2, 2, 2, 4, 4, 4, 4]),
}


@pytest.mark.parametrize("case", CASES)
def test_layers_are_what_a_dry_run_measures(case):
    make, factor, strides = CASES[case]
    side = ControlNetSide.from_main(make(), factor)
    layers = side.layers()
    assert [layer.name for layer in layers] == [*[f"down.{i}" for i in range(len(strides) - 1)], "mid"]
    assert [layer.stride for layer in layers] == strides
    taps = {layer.name: FeatureTap(side.module, layer.path) for layer in layers}
    for tap in taps.values():
        tap._observing = True
    with torch.no_grad():
        height, width = default_dry_run(side.module)()
    for layer in layers:
        feature = taps[layer.name].read()
        assert feature.shape == (1, layer.channels, height // layer.stride, width // layer.stride), layer


def test_layer_names_of_other_families():
    """Told by attribute, whatever the class."""
    network = torch.nn.Module()
    network.controlnet_blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2)
    network.controlnet_single_blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    assert layer_names(network) == {
        "block.0": "controlnet_blocks.0",
        "block.1": "controlnet_blocks.1",
        "single.0": "controlnet_single_blocks.0",
    }
    assert layer_names(torch.nn.Linear(1, 1)) == {}


def test_a_new_one_is_a_copy_that_does_nothing_yet(sd15):
    pair = tiny.make_pair(sd15, randomise=False)
    unet, module = pair.main.network, pair.side.module
    assert torch.equal(module.conv_in.weight, unet.conv_in.weight)
    for name, value in module.down_blocks.state_dict().items():
        assert torch.equal(value, unet.down_blocks.state_dict()[name])
    assert all(p.requires_grad for p in module.parameters())
    assert all((p == 0).all() for zero in pair.side.zero_modules() for p in zero.parameters())
    assert len(pair.side.zero_modules()) == 12 + 1 + 1


def test_zero_modules_are_all_that_are_zero(sd15):
    side = tiny.make_pair(sd15, randomise=False).side
    named = {id(p) for zero in side.zero_modules() for p in zero.parameters()}
    zero_weights = {
        id(p) for name, p in side.module.named_parameters() if name.endswith("weight") and not p.detach().any()
    }
    assert zero_weights <= named


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_condition_shrinks_like_the_latent(factor):
    side = ControlNetSide.from_main(tiny.make_unet(levels=3), factor)
    text = {"encoder_hidden_states": torch.zeros(1, 3, tiny.TEXT_WIDTH)}
    down, mid = side.forward(torch.zeros(1, 4, 8, 12), torch.zeros(1), text, torch.zeros(1, 3, 8 * factor, 12 * factor))
    assert len(down) == 9 and mid.shape == (1, 16, 2, 3)


@pytest.mark.parametrize("factor", [1, 6, 16])
def test_factors_without_an_embedding(factor):
    with pytest.raises(LisaError, match=f"factor {factor}"):
        ControlNetSide.from_main(tiny.make_unet(), factor)


def test_unet_that_diffusers_cannot_copy():
    from diffusers import UNet2DConditionModel

    config = {name: value for name, value in tiny.make_unet().config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel(**config | {"time_cond_proj_dim": 8})  # as models with distilled guidance have
    with pytest.raises(LisaError, match="cannot copy this UNet2DConditionModel"):
        ControlNetSide.from_main(unet, 8)


@pytest.fixture
def saved(sd15, tmp_path):
    side = tiny.make_pair(sd15).side
    side.save(tmp_path / "run" / "side_network")
    return side, tmp_path / "run"


def test_warm_start_from_a_folder_a_run_and_a_variant(saved, tmp_path):
    side, run = saved
    for folder in (run, run / "side_network"):
        loaded = ControlNetSide.from_folder(str(folder))
        assert_same(loaded.module.state_dict(), side.module.state_dict())
        assert all(p.requires_grad for p in loaded.module.parameters())
    side.module.half().save_pretrained(tmp_path / "half", variant="fp16")
    half = ControlNetSide.from_folder(str(tmp_path / "half")).module
    assert half.dtype == torch.float32
    assert_same(half.half().state_dict(), side.module.state_dict())


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def refused(folder, words):
    with pytest.raises(LisaError, match=words) as caught:
        ControlNetSide.from_folder(str(folder))
    assert "ControlNetModel folder" in str(caught.value) or "download" in str(caught.value)


def test_what_is_no_controlnet_is_refused(saved, sd15, tmp_path):
    refused(tmp_path / "nowhere", "no ControlNetModel folder .*nowhere")
    refused("nowhere", "no ControlNetModel folder 'nowhere'")
    refused(sd15 / "unet", "holds a UNet2DConditionModel, not a ControlNetModel")
    refused(sd15, "no config.json")
    (tmp_path / "file.txt").write_text("")
    refused(tmp_path / "file.txt", "no ControlNetModel folder")
    folder = saved[1] / "side_network"
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:2000])
    refused(folder, "cannot be loaded")
    weights.unlink()
    refused(folder, "no weights")


def test_missing_and_foreign_weights_are_not_made_up(saved):
    """A loader fills what is missing with random numbers and says so in a log line only."""
    file = saved[1] / "side_network" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    removed = state.pop("controlnet_mid_block.weight")
    save_file(state, file)
    refused(saved[1], "1 are missing or too many .controlnet_mid_block.weight")
    save_file({**state, "controlnet_mid_block.weight": removed, "likelihood.weight": removed.clone()}, file)
    refused(saved[1], "likelihood.weight")


def test_saved_folder_is_plain(saved):
    side, run = saved
    assert sorted(p.name for p in (run / "side_network").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((run / "side_network" / "config.json").read_text())["_class_name"] == "ControlNetModel"
    assert set(load_file(run / "side_network" / "diffusion_pytorch_model.safetensors")) == set(side.module.state_dict())


def test_forward_calls_the_wrapper_that_training_puts_there(sd15):
    pair = tiny.make_pair(sd15)
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(1)
        return pair.side.module(*args, **kwargs)

    pair.side.callee = wrapper
    pair.predict(tiny.make_inputs(pair.main)[0])
    assert calls == [1]
