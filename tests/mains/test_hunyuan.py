"""HunyuanDiT from folders: shards, variants, missing encoders; what its networks are given; what is refused."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from conformance import tiny_hunyuan
from lisa.mains.hunyuan import HunyuanMain, load_hunyuan
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from model_copies import edited, refused

SPEC = pair_spec("hunyuan-controlnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Version 1.1's structure (sizes and style), sharded as the public T5 is."""
    return tiny_hunyuan.make_folder(tmp_path_factory.mktemp("hunyuan") / "m", style=True, layers=6, shard="5KB")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_hunyuan(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple) == (4, 8, 16)
    assert main.process.prediction == "v_prediction"


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_missing_text_encoder(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / name)
    assert f"has no {name}" in refused(load_hunyuan, str(tmp_path / "m"))


def test_other_families_are_refused(folder, tmp_path):
    message = refused(load_hunyuan, str(edited(folder, tmp_path / "m", _class_name="SanaPipeline")))
    assert "SanaPipeline" in message and "HunyuanDiTPipeline" in message


def test_models_that_cannot_be_trained_on(loaded):
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_hunyuan.make_transformer(layers=4, learn_sigma=False)
    assert "learn_sigma" in refused(HunyuanMain, pipeline, "here")
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    assert "predicts 'sample'" in refused(HunyuanMain, pipeline, "here")
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.vae.register_to_config(block_out_channels=(4, 4, 8))
    assert "1/4 of the size" in refused(HunyuanMain, pipeline, "here")


def test_text_is_what_the_pipeline_would_use(main):
    context = main.encode_text(["a red cat", ""])
    assert {name: tuple(value.shape) for name, value in context.items()} == {
        "encoder_hidden_states": (2, 77, 16),
        "text_embedding_mask": (2, 77),
        "encoder_hidden_states_t5": (2, 256, 16),
        "text_embedding_mask_t5": (2, 256),
    }
    for index, (suffix, length) in enumerate((("", 77), ("_t5", 256))):
        text, empty, mask, empty_mask = main.pipeline.encode_prompt(
            "a red cat", torch.device("cpu"), max_sequence_length=length, text_encoder_index=index
        )
        assert torch.equal(context[f"encoder_hidden_states{suffix}"], torch.cat([text, empty]))
        assert torch.equal(context[f"text_embedding_mask{suffix}"], torch.cat([mask, empty_mask]))


def test_half_of_the_output_is_a_variance(main):
    x_t = torch.randn(2, 4, 8, 12)
    context = main.complete(main.encode_text(["a", "b"]), x_t)
    with torch.no_grad():
        output = main.network(x_t, torch.tensor([3.0, 500.0]), **context, return_dict=False)[0]
        assert torch.equal(main.forward(x_t, torch.tensor([3, 500]), context), output[:, :4])
    assert output.shape[1] == 8


def test_new_side_network_copies_what_the_main_network_has(main):
    side = SPEC.make_side(main, SideOptions())
    ours, theirs = side.module.state_dict(), main.network.state_dict()
    new = [name for name in ours if name not in theirs]
    assert {name.split(".")[0] for name in new} == {"controlnet_blocks", "input_block"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name in theirs)
    assert len(side.module.blocks) == 2 and side.module.config.use_style_cond_and_image_meta_size
    assert "side.depth" in refused(SPEC.make_side, main, SideOptions(depth=1))
    assert "one picture" in refused(SPEC.make_side, main, SideOptions(conditions=2))


def test_side_networks_of_other_versions_do_not_fit(main):
    other = HunyuanMain(tiny_hunyuan.make_pipeline(style=False, layers=6), "other")
    side = SPEC.make_side(other, SideOptions())
    assert "use_style_cond_and_image_meta_size" in refused(SPEC.check_fit, main, side)
    deeper = HunyuanMain(tiny_hunyuan.make_pipeline(style=True, layers=8), "deeper")
    assert "3 blocks" in refused(SPEC.check_fit, main, SPEC.make_side(deeper, SideOptions()))
