"""Qwen-Image from folders: shards, variants; text of any length; its autoencoder; what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from conformance import tiny_qwen
from conformance.row import randomise_zero_modules
from lisa.core.packing import pack
from lisa.mains.base import latents_from_moments
from lisa.mains.qwen import QwenImageMain, load_qwen_image
from lisa.pairs import Inputs, Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures
from lisa.sides.base import SideOptions
from model_copies import edited, refused

SPEC = pair_spec("qwen-controlnet")
CAPTIONS = ["a red cat on a mat", "dogs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen.make_folder(tmp_path_factory.mktemp("qwen") / "m", shard="20KB")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_qwen_image(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple) == (4, 8, 16)
    # Shifted by the size of the picture when sampling, so that training is not; time counts 0 to 1.
    assert (main.process.shift, main.process.model_time_scale) == (1.0, 1.0)


@pytest.mark.parametrize("flag", ["guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"])
def test_edit_and_layered_models_are_refused(loaded, flag):
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer.register_to_config(**{flag: True})
    assert flag in refused(QwenImageMain, pipeline, "here")


def test_other_folders_are_refused(folder, tmp_path, loaded):
    from diffusers import DDIMScheduler

    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.scheduler = DDIMScheduler()
    assert "DDIMScheduler" in refused(QwenImageMain, pipeline, "here")
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_qwen.make_transformer(in_channels=32)
    assert "takes 8" in refused(QwenImageMain, pipeline, "here")
    message = refused(load_qwen_image, str(edited(folder, tmp_path / "m", _class_name="QwenImageEditPipeline")))
    assert "QwenImageEditPipeline" in message and "QwenImagePipeline" in message


def test_contexts_can_be_batched_and_are_what_the_pipeline_would_use(main):
    texts, mask = main.pipeline.encode_prompt(CAPTIONS, device=torch.device("cpu"))
    long, short = main.encode_text(CAPTIONS[:1]), main.encode_text(CAPTIONS[1:])
    together = {name: torch.cat([long[name], short[name]]).float() for name in long}  # as a cache gives them back
    assert together["encoder_hidden_states"].shape == (2, 512, 16)
    context = main.complete(together, torch.zeros(2, 4, 8, 8))
    torch.testing.assert_close(context["encoder_hidden_states"], texts)
    assert torch.equal(context["encoder_hidden_states_mask"], mask.bool())
    alone = main.complete(short, torch.zeros(1, 4, 8, 8))
    assert alone.keys() == {"encoder_hidden_states"}  # the pipeline gives no mask where nothing is masked
    assert alone["encoder_hidden_states"].shape[1] == int(mask[1].sum())
    empty, space = main.encode_text([""]), main.encode_text([" "])
    assert all(torch.equal(empty[name], space[name]) for name in empty)


def test_padding_changes_no_prediction(main):
    """Of the shorter caption, in a batch and alone: by both networks."""
    pair = Pair(SPEC, main, SPEC.make_side(main, SideOptions()))
    randomise_zero_modules(pair.side)
    x_t, t, condition = torch.randn(2, 4, 8, 12), torch.tensor([0.3, 0.8]), torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        both = pair.predict(Inputs(x_t, t, main.encode_text(CAPTIONS), condition))
        one = pair.predict(Inputs(x_t[1:], t[1:], main.encode_text(CAPTIONS[1:]), condition[1:]))
    torch.testing.assert_close(both.prior[1:], one.prior, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.controlled[1:], one.controlled, atol=1e-5, rtol=1e-4)
    assert (both.controlled - both.prior).abs().max() > 1e-2


def test_guidance_reaches_the_pipeline(main):
    """It guides only where it is given a negative prompt, one for each picture of the batch."""
    pair, seen = Pair(SPEC, main, SPEC.make_side(main, SideOptions())), []
    pipeline = pair.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    main.network.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    requests = [Request(str(i), "a cat", np.zeros((32, 32, 3), np.uint8), seed=i) for i in range(2)]
    calls = []
    for guidance in (1.0, 4.0):
        list(sample_pictures(pipeline, requests, SamplerSettings(steps=2, guidance=guidance), SPEC.call))
        calls.append([len(kwargs["encoder_hidden_states"]) for kwargs in seen])
        seen.clear()
    assert calls == [[2, 2], [2, 2, 2, 2]]


def test_moments_have_each_channels_own_scale(main):
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    moments = main.encode_moments(pixels)
    assert moments.shape == (2, 8, 4, 6)
    posterior = main.pipeline.vae.encode(pixels.unsqueeze(2)).latent_dist
    packed = main.pipeline._pack_latents(moments[:, :4].contiguous(), 2, 4, 4, 6)
    assert torch.equal(pack(moments[:, :4]), packed)
    mean, std = (torch.tensor(each).view(1, 4, 1, 1, 1) for each in (tiny_qwen.MEAN, tiny_qwen.DEVIATION))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(4))
    drawn = (posterior.sample(torch.Generator().manual_seed(4)) - mean) / std
    torch.testing.assert_close(latents_from_moments(moments, noise[:, :, 0]), drawn[:, :, 0])
    decoded = main.decode(moments[:, :4])
    torch.testing.assert_close(decoded, main.pipeline.vae.decode(posterior.mean).sample[:, :, 0])


def test_new_side_network_copies_the_norm_of_the_text_too(main):
    side = SPEC.make_side(main, SideOptions())
    ours, theirs = side.module.state_dict(), main.network.state_dict()
    assert (theirs["txt_norm.weight"] - 1).abs().max() > 0.1
    new = {name.split(".")[0] for name in ours if name not in theirs}
    assert new == {"controlnet_blocks", "controlnet_x_embedder"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name in theirs)
    assert len(side.module.transformer_blocks) == 5
    assert "one picture" in refused(SPEC.make_side, main, SideOptions(conditions=2))


def test_side_networks_of_other_transformers(main, loaded):
    """Five blocks on six of the main network: three are taken up, and the others' parameters are frozen."""
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_qwen.make_transformer(num_layers=6)
    six = QwenImageMain(pipeline, "six")
    side = SPEC.make_side(main, SideOptions())
    SPEC.check_fit(six, side)
    trained = {name.split(".")[1] for name, p in side.module.named_parameters() if p.requires_grad and "block" in name}
    assert trained == {"0", "1", "2"} and not side.module.transformer_blocks[2].txt_mlp.net[2].weight.requires_grad
    pipeline.transformer = tiny_qwen.make_transformer(num_attention_heads=3)
    assert "num_attention_heads" in refused(SPEC.check_fit, QwenImageMain(pipeline, "wide"), side)
    side.module.register_to_config(extra_condition_channels=4)
    assert "inpainting" in refused(SPEC.check_fit, main, side)
