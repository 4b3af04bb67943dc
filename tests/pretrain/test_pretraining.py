"""``lisa pretrain`` at a size that takes seconds: the folder it makes, its determinism, and interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from lisa.build import pretraining, pretraining_stage
from lisa.build.pretraining import pretrain
from lisa.common.errors import LisaError
from lisa.data.scenes import make_scene
from lisa.train.pretrain.config import PretrainConfig, TextSettings
from lisa.train.pretrain.text import make_text_encoder, make_tokenizer
from lisa.train.settings import check_settings
from tiny_pretraining import StopAt, config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pretrain(config(tmp_path_factory.mktemp("pretrain") / "run"))


def weights(model):
    return load_file(model / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_stock_pipeline_loads_and_runs_the_folder(made):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    image = pipe("a red circle", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (32, 32, 3)


def test_weights_are_stored_as_half_and_the_text_encoder_is_not(made):
    assert all(value.dtype == torch.float16 for value in weights(made).values())
    text = load_file(made / "text_encoder" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in text.values() if value.is_floating_point())


def test_latents_have_unit_variance_after_the_stored_factor(made):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(made / "vae")
    pictures = np.stack([make_scene(0, i).image(32) for i in range(64)])
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    assert float((mean * vae.config.scaling_factor).std()) == pytest.approx(1, abs=0.1)


def test_one_pretraining_at_a_time_in_a_folder(tmp_path, monkeypatch):
    """Another one is refused at once, as long as the first goes on."""
    refused = []

    def stage(*_, **__):
        with pytest.raises(LisaError, match="another process is training in the run folder"):
            pretrain(config(tmp_path / "run", resume=True))
        refused.append(True)
        return None

    monkeypatch.setattr(pretraining, "_train_vae", stage)
    assert pretrain(config(tmp_path / "run")) is None and refused


def test_the_same_seed_gives_the_same_model_and_another_does_not(made, tmp_path):
    again = pretrain(config(tmp_path / "again"))
    other = pretrain(config(tmp_path / "other", seed=1))
    ours = weights(made)
    assert all(torch.equal(value, weights(again)[name]) for name, value in ours.items())
    assert any(not torch.equal(value, weights(other)[name]) for name, value in ours.items())


def test_interrupted_equals_uninterrupted(made, tmp_path, monkeypatch):
    """Stopped in the middle of the second stage, then resumed."""
    real = pretraining.run

    def stop_early(training):
        if training.total_steps == 4:
            training.callbacks = [*training.callbacks, StopAt(2)]
        return real(training)

    monkeypatch.setattr(pretraining, "run", stop_early)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text("")  # of an earlier one, to be replaced
    assert pretrain(config(tmp_path / "run", overwrite=True)) is None
    kept = (tmp_path / "run" / "config.yaml").read_text()
    assert "overwrite: false" in kept and "resume: false" in kept, "a configuration to go on with"
    monkeypatch.setattr(pretraining, "run", real)
    resumed = pretrain(config(tmp_path / "run", resume=True))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(made).items())


def test_all_of_it_is_on_the_cpu(tmp_path, monkeypatch):
    """Also where there is a GPU: accelerate would move the networks there, and nobody their batches."""
    given = []
    monkeypatch.setattr(
        pretraining_stage, "Accelerator", lambda **options: given.append(options) or Accelerator(**options)
    )
    pretrain(config(tmp_path / "run"))
    assert len(given) >= 3 and all(options == {"cpu": True} for options in given)


def test_a_folder_of_captioned_images(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(20):
        scene = make_scene(3, i)
        Image.fromarray(scene.image(48)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {scene.shapes[0].colour} number")
    model = pretrain(config(tmp_path / "run", data={"folder": folder}))
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    assert len(tokenizer.tokenize("picture number")) == 2  # the captions' own words are single tokens


def test_a_caption_is_missing(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(make_scene(3, i).image(48)).save(folder / f"{i}.png")
    with pytest.raises(LisaError, match="caption"):
        pretrain(config(tmp_path / "run", data={"folder": folder}))


def test_sizes_and_flags_that_do_not_fit():
    with pytest.raises(LisaError, match="multiple"):
        check_settings(PretrainConfig, {"data": {"size": 40}})
    with pytest.raises(LisaError, match="resume and overwrite exclude each other"):
        check_settings(PretrainConfig, {"resume": True, "overwrite": True})
    with pytest.raises(LisaError, match="attention needs 3 flags"):
        check_settings(PretrainConfig, {"unet": {"attention": [True]}})
    with pytest.raises(LisaError, match="multiple of 16"):
        check_settings(PretrainConfig, {"data": {"size": 72}, "architecture": "sd3", "transformer": {"patch": 4}})


def test_tokenizer_and_text_encoder():
    captions = [make_scene(0, i).caption() for i in range(200)]
    tokenizer = make_tokenizer(captions, TextSettings())
    assert tokenizer.tokenize("a small red triangle") == ["a</w>", "small</w>", "red</w>", "triangle</w>"]
    ids = tokenizer("zebra ünïcode", padding="max_length", max_length=48).input_ids
    assert tokenizer.unk_token_id not in ids[1 : ids.index(tokenizer.eos_token_id)]  # any text can be written
    longest = max(len(tokenizer(caption).input_ids) for caption in captions)
    assert longest <= TextSettings().length
    encoder = make_text_encoder(tokenizer, TextSettings())
    assert encoder(torch.tensor([ids])).last_hidden_state.shape == (1, 48, 96)
