"""A Stable Video Diffusion from ``lisa pretrain``: what the stock pipeline makes of it, its frames, its noise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lisa
from lisa.build import pretraining, pretraining_clips
from lisa.build.pretraining import pretrain
from lisa.build.pretraining_clips import EncodedClips, load_clips, open_clips, sample_clip, some_frames
from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.core.frames import fold
from lisa.data.moving import make_moving_scene
from lisa.mains.svd import load_svd
from lisa.processes.draws import Draws
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.svd import ClipBatch, ClipStep
from lisa.train.settings import check_settings
from tiny_pretraining import StopAt, denoiser, vae_of, video_config


def test_an_autoencoder_sees_frames_in_a_row_from_anywhere_in_a_clip():
    clips = torch.arange(8.0).reshape(1, 1, 8, 1, 1)
    seen = {tuple(some_frames(clips, 3, u).flatten().tolist()) for u in np.linspace(0, 1, 200, endpoint=False)}
    assert seen == {(first, first + 1, first + 2) for first in range(6)}
    assert torch.equal(some_frames(clips, 9, 0.99), clips)


def test_an_autoencoder_sees_whole_clips_at_last_and_its_encoder_is_frozen_then(tmp_path, monkeypatch):
    seen, encoders, decoders = [], [], []

    class Recorded(pretraining.VAEStep):
        def __call__(self, batch, step):
            seen.append(tuple(batch.shape[:3]))
            for weights, part in ((encoders, self.vae.encoder), (decoders, self.vae.decoder)):
                weights.append(torch.cat([parameter.detach().flatten().clone() for parameter in part.parameters()]))
            return super().__call__(batch, step)

    monkeypatch.setattr(pretraining, "VAEStep", Recorded)
    config = video_config(tmp_path / "run", vae={"steps": 4, "batch_size": 3, "frames": 2, "decoder_steps": 2})
    (tmp_path / "run").mkdir()
    vae = pretraining._train_vae(config, RunFolder(tmp_path / "run"), load_clips(config, open_clips(config)))
    assert seen == [(3, 3, 2)] * 3 + [(2, 3, 3)] * 3
    changed = [[not torch.equal(*pair) for pair in itertools.pairwise(each)] for each in (encoders, decoders)]
    assert changed == [[True] * 4 + [False], [True] * 5]
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_frames_of_an_autoencoder_of_pictures():
    with pytest.raises(LisaError, match=r"vae.frames is of clips: leave it out, or set architecture to svd"):
        check_settings(PretrainConfig, {"vae": {"frames": 3}})


@pytest.fixture(scope="module", autouse=True)
def small_sheets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining_clips, "_SHOWN", 2)
        patch.setattr(pretraining_clips, "_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sheets of samples and held-out errors on the way."""
    return pretrain(video_config(tmp_path_factory.mktemp("pretrain") / "run", samples_every=2))


@pytest.fixture(scope="module")
def pipe(made):
    from diffusers import StableVideoDiffusionPipeline

    pipe = StableVideoDiffusionPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_stock_pipeline_loads_and_runs_the_folder(pipe):
    networks = (pipe.unet, pipe.vae, pipe.image_encoder)
    assert all(network.dtype == torch.float32 for network in networks)
    frame = make_moving_scene(0, 1).at(0).image(16)
    clip = pipe(Image.fromarray(frame), height=16, width=16, num_inference_steps=1, output_type="np").frames[0]
    assert clip.shape == (3, 16, 16, 3)


@pytest.mark.parametrize("which", ["made", "embedded"])
def test_classes_are_named_as_published_folders_name_them(made, which):
    """Also of the image processor, which other versions of transformers know by this name alone."""
    folder = made if which == "made" else Path(lisa.zoo.path("tiny-svd"))
    index = json.loads((folder / "model_index.json").read_text())
    assert {name: entry[1] for name, entry in index.items() if not name.startswith("_")} == {
        "feature_extractor": "CLIPImageProcessor",
        "image_encoder": "CLIPVisionModelWithProjection",
        "scheduler": "EulerDiscreteScheduler",
        "unet": "UNetSpatioTemporalConditionModel",
        "vae": "AutoencoderKLTemporalDecoder",
    }


def test_large_weights_are_stored_as_half(made):
    for name in ("unet", "vae"):
        weights = load_file(made / name / "diffusion_pytorch_model.safetensors")
        assert all(value.dtype == torch.float16 for value in weights.values())
    assert all(value.dtype != torch.float16 for value in load_file(made / "image_encoder/model.safetensors").values())


def test_latents_have_unit_variance_after_the_stored_factor(pipe):
    clips = np.concatenate([make_moving_scene(0, i).clip(3, 8.0, 16) for i in range(40)])
    with torch.no_grad():
        mean = pipe.vae.encode(torch.from_numpy(clips).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    assert float((mean * pipe.vae.config.scaling_factor).std()) == pytest.approx(1, abs=0.1)
    assert "shift_factor" not in pipe.vae.config


def test_sheets_and_held_out_errors_on_the_way(made):
    run = made.parent
    assert {path.name for path in (run / "samples").iterdir()} == {
        *("vae-000002.png", "decoder-000002.png", "step-000002.png", "step-000004.png")
    }
    with Image.open(run / "samples" / "step-000004.png") as sheet:
        assert sheet.width == 2 * (2 * (3 * 17 - 1) + 4) and sheet.height > 2 * 2 * 16  # three frames in two columns
    curve = json.loads((run / "summary.json").read_text())["held_out"]
    autoencoder, denoiser = curve[:2], curve[2:]
    assert [(each["step"], each["kind"]) for each in autoencoder] == [(2, "held_out_vae"), (2, "held_out_decoder")]
    assert [(each["step"], each["kind"]) for each in denoiser] == [(2, "held_out"), (4, "held_out")]
    assert all(each["mse"] > 0 for each in denoiser)


def test_a_side_network_can_be_trained_on_it(made):
    main = load_svd(str(made))
    assert (main.latent_factor, main.latent_channels, main.process.prediction) == (2, 4, "edm")


def test_the_saved_model_gives_the_clip_of_our_own_sampling(pipe, made):
    """Euler's method on what was trained, with nothing of the pipeline but its noise levels."""
    main, (model, config) = load_svd(str(made)), denoiser()
    model.unet.load_state_dict(pipe.unet.state_dict())
    model.image_encoder.load_state_dict(pipe.image_encoder.state_dict())
    step = ClipStep(model.eval(), pipe.vae, Draws(0), config)
    frame = make_moving_scene(0, 1).at(0).image(16)
    batch = ClipBatch(
        [0],
        torch.zeros(1, 4, 3, 8, 8),
        torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1,
        torch.tensor([12.0]),
    )
    theirs = pipe(
        Image.fromarray(frame), height=16, width=16, fps=12, num_inference_steps=4, max_guidance_scale=1.0,
        noise_aug_strength=0.02, generator=torch.Generator().manual_seed(3), output_type="latent",
    )[0]  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 3, 16, 16, generator=generator)
    start = torch.randn(1, 3, 4, 8, 8, generator=generator).transpose(1, 2)
    step.draws = _Fixed(noise)
    with torch.no_grad():
        context = step.context(batch, 0)
        sigmas = pipe.scheduler.sigmas
        x = start * (sigmas[0] ** 2 + 1).sqrt()
        for now, then in itertools.pairwise(sigmas):
            t = now[None]
            x = x + (then - now) / now * (x - model.process.denoised(x, model.predict(x, t, context), t))
    assert main.process.prediction == model.process.prediction
    torch.testing.assert_close(x.transpose(1, 2), theirs, atol=2e-3, rtol=1e-3)


class _Fixed:
    """Draws: this noise on the frame, of the median strength, and nothing dropped."""

    def __init__(self, noise):
        self._noise = noise

    def noise(self, step, samples, shape, stream="noise"):
        return self._noise

    def uniform(self, step, samples, stream="timestep"):
        at = {"caption": 0.99, "strength": float(torch.special.ndtr(torch.tensor((np.log(0.02) + 3.9) / 0.5)))}
        return torch.full((len(samples),), at[stream])


def test_clips_are_of_every_rate_and_mirrored_with_their_frames(tmp_path):
    config = video_config(tmp_path)
    clips = load_clips(config, open_clips(config))
    assert clips.pixels.shape == (64, 3, 16, 16, 3) and clips.rates.tolist() == [6.0] * 32 + [12.0] * 32
    assert np.array_equal(clips.pixels[5], make_moving_scene(0, 5).clip(3, 6.0, 16))
    assert np.array_equal(clips.pixels[40], make_moving_scene(0, 40).clip(3, 12.0, 16))
    assert not set(clips.train) & set(clips.held_out) and len(clips.held_out) == 8
    encoded = EncodedClips(config, clips, vae := vae_of(config))
    batch = encoded.batch([40, 5], np.array([True, False]))
    pixels = clips.tensor([40, 5])
    pixels[0] = pixels[0].flip(-1)
    assert torch.equal(batch.frames, pixels[:, :, 0]) and batch.rates.tolist() == [12.0, 6.0]
    with torch.no_grad():
        expected = vae.encode(fold(pixels)).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(fold(batch.latents), expected, atol=2e-3, rtol=2e-3)


def test_interrupted_equals_uninterrupted(made, tmp_path, monkeypatch):
    """Stopped in the middle of the second stage, without sheets, then resumed."""
    real = pretraining_clips.run

    def stop_early(training):
        training.callbacks = [*training.callbacks, StopAt(2)]
        return real(training)

    monkeypatch.setattr(pretraining_clips, "run", stop_early)
    assert pretrain(video_config(tmp_path / "run")) is None
    monkeypatch.setattr(pretraining_clips, "run", real)
    resumed = pretrain(video_config(tmp_path / "run", resume=True))
    for part in ("unet/diffusion_pytorch_model", "image_encoder/model", "vae/diffusion_pytorch_model"):
        ours, theirs = (load_file(folder / f"{part}.safetensors") for folder in (resumed, made))
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_an_autoencoder_that_is_there_is_used_as_it_is(made, tmp_path):
    model = pretrain(video_config(tmp_path / "run", vae={"init": str(made / "vae")}, denoiser={"steps": 1}))
    name = "vae/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(model / name), load_file(made / name)
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())


def test_an_autoencoder_of_pictures_is_refused_before_any_work(tmp_path):
    with pytest.raises(LisaError, match="it is an AutoencoderKL, not an AutoencoderKLTemporalDecoder"):
        pretrain(video_config(tmp_path / "run", vae={"init": f"{lisa.zoo.path('tiny-sd')}/vae"}))
    assert not (tmp_path / "run").exists()


def test_defaults_are_those_of_clips():
    config = check_settings(PretrainConfig, {"architecture": "svd", "vae": {"steps": 7}})
    assert (config.data.size, config.vae.channels, config.vae.groups, config.vae.steps) == (32, (64, 64), 32, 7)
    assert check_settings(PretrainConfig, {}).vae.channels == (24, 48, 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": {"channels": [24, 48]}}, "vae.channels are multiples"),
        ({"vae": {"groups": 8}}, "vae.groups is 32"),
        ({"video": {"channels": [48, 64, 64]}}, "multiples of 32"),
        ({"video": {"attention": [True]}}, "attention needs 3 flags"),
        ({"video": {"log_sigma": [0.0, 0.0]}}, "deviation in log_sigma"),
        ({"video": {"image_width": 30}}, "image_width must be"),
        ({"data": {"rates": [8.0, 0.0]}}, "rates must be above 0"),
        ({"data": {"folder": "mine"}}, "moving scenes"),
        ({"data": {"size": 48}, "vae": {"channels": [64, 64, 64, 64]}}, "multiple of 32"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(LisaError, match=words):
        check_settings(PretrainConfig, {"architecture": "svd", **changes})


def test_a_clip_of_the_sheet_is_the_pipelines(pipe):
    frame = make_moving_scene(0, 2).at(0).image(16)
    ours = sample_clip(pipe, frame, 6.0, 5)
    theirs = pipe(
        Image.fromarray(frame), 16, 16, fps=6, num_inference_steps=1, output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).frames[0]  # fmt: skip
    assert np.array_equal(ours, (theirs * 255).round().astype(np.uint8))
