"""Sana from folders: shards, variants, schedulers; its text with and without instruction; what is refused."""

from __future__ import annotations

import copy
import inspect
import shutil

import pytest
import torch

from conformance import tiny_sana
from lisa.mains.base import latents_from_moments
from lisa.mains.sana import SanaMain, load_sana
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from model_copies import edited, refused

SPEC = pair_spec("sana-controlnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sana.make_folder(tmp_path_factory.mktemp("sana") / "m", shard="5KB")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_sana(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple) == (4, 8, 8)
    assert (main.process.prediction, main.process.shift, main.process.model_time_scale) == ("flow", 3.0, 1000.0)


def test_schedulers_of_flows(loaded, folder, tmp_path):
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler

    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert SanaMain(pipeline, "here").process.shift == 2.0
    pipeline.scheduler = DPMSolverMultistepScheduler()
    assert "not set up for a flow" in refused(SanaMain, pipeline, "here")
    pipeline.scheduler = SCMScheduler()
    assert "SCMScheduler" in refused(SanaMain, pipeline, "here")
    shutil.copytree(folder, tmp_path / "m")
    DPMSolverMultistepScheduler().save_pretrained(tmp_path / "m" / "scheduler")
    shutil.rmtree(tmp_path / "m" / "transformer")  # never read: it is refused before long work
    assert "not set up for a flow" in refused(load_sana, str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": "rms_norm_across_heads"}, "Sana 1.5"),
        ({"guidance_embeds": True}, "Sprint"),
        ({"timestep_scale": 1000.0}, "Sprint"),
        ({"out_channels": 8}, "gives 8 channels"),
    ],
)
def test_transformers_whose_control_net_cannot_follow(loaded, changes, words):
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_sana.make_transformer(**changes)
    assert words in refused(SanaMain, pipeline, "here")


def test_a_single_file_is_refused_where_diffusers_reads_none(tmp_path):
    (tmp_path / "sana.safetensors").touch()
    assert "diffusers reads none into a SanaPipeline" in refused(load_sana, str(tmp_path / "sana.safetensors"))


def test_other_folders_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "text_encoder")
    assert "has no text_encoder" in refused(load_sana, str(tmp_path / "m"))
    message = refused(load_sana, str(edited(folder, tmp_path / "other", _class_name="SanaSprintPipeline")))
    assert "SanaSprintPipeline" in message and "SanaPipeline" in message


def test_text_is_what_the_pipeline_would_use(main):
    """An instruction before captions, none before the empty prompt of classifier-free guidance."""
    from diffusers import SanaControlNetPipeline

    instruction = inspect.signature(SanaControlNetPipeline.__call__).parameters["complex_human_instruction"].default
    assert len(instruction) > 1
    text, mask, empty, empty_mask = main.pipeline.encode_prompt(
        ["a red cat"], True, device=torch.device("cpu"), complex_human_instruction=instruction
    )
    ours = main.encode_text(["a red cat", ""])
    assert ours["encoder_hidden_states"].shape == (2, 300, 16)
    torch.testing.assert_close(ours["encoder_hidden_states"], torch.cat([text, empty]))
    assert torch.equal(ours["encoder_attention_mask"], torch.cat([mask, empty_mask]))
    assert (text[0] - empty[0]).abs().max() > 0.1 and empty_mask.sum() < mask.sum()


def test_latents_have_no_deviation(main):
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    moments = main.encode_moments(pixels)
    mean, deviation = moments.chunk(2, dim=1)
    latent = main.pipeline.vae.encode(pixels).latent
    assert torch.equal(mean, latent * main.pipeline.vae.config.scaling_factor) and deviation.abs().max() == 0
    assert torch.equal(latents_from_moments(moments, torch.randn(mean.shape)), mean)
    torch.testing.assert_close(main.decode(mean), main.pipeline.vae.decode(latent).sample)


def test_depth_of_a_new_side_network(main):
    assert len(SPEC.make_side(main, SideOptions()).layers()) == 5  # of seven by custom, what six blocks take up
    side = SPEC.make_side(main, SideOptions(depth=2))
    assert len(side.layers()) == 2
    ours, theirs = side.module.state_dict(), main.network.state_dict()
    new = {name.split(".")[0] for name in ours if name not in theirs}
    assert new == {"controlnet_blocks", "input_block"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name in theirs)
    assert "1 to 5" in refused(SPEC.make_side, main, SideOptions(depth=6))
    assert "one picture" in refused(SPEC.make_side, main, SideOptions(conditions=2))


def test_side_networks_of_other_transformers_do_not_fit(main, loaded):
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_sana.make_transformer(num_layers=8)
    deeper = SPEC.make_side(SanaMain(pipeline, "deeper"), SideOptions())
    assert "7 blocks" in refused(SPEC.check_fit, main, deeper)
    pipeline.transformer = tiny_sana.make_transformer(caption_channels=8)
    assert "caption_channels" in refused(
        SPEC.check_fit, main, SPEC.make_side(SanaMain(pipeline, "other"), SideOptions())
    )
