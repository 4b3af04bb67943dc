"""A Stable Diffusion 3 from ``lisa pretrain``: what the stock pipeline makes of its folder, its text, its padding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lisa
import tiny_pretraining
from lisa.build.pretraining import pretrain
from lisa.common.errors import LisaError
from lisa.data.scenes import make_scene
from lisa.processes.draws import Draws
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.denoiser import DenoiserStep, LatentBatch
from lisa.train.pretrain.neighbours import OFFSETS
from lisa.train.pretrain.sd3 import PIPELINE_TOKENS, SD3Denoiser
from lisa.train.settings import check_settings

SMALL = {"architecture": "sd3", "transformer": {"heads": 2, "head_width": 8, "layers": 2}}
CAPTIONS = [make_scene(0, i).caption() for i in range(40)]


def config(out, **changes):
    return tiny_pretraining.config(out, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pretrain(config(tmp_path_factory.mktemp("sd3") / "run", denoiser={"bf16": True}))


@pytest.fixture(scope="module")
def pipe(made):
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(**changes):
    torch.manual_seed(0)
    raw = {**tiny_pretraining.SMALL, **SMALL, **changes}
    return SD3Denoiser(check_settings(PretrainConfig, raw), CAPTIONS, 8)


def test_the_stock_pipeline_loads_and_runs_the_folder(pipe):
    networks = [pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3]
    assert all(network.dtype == torch.float32 for network in networks)
    image = pipe("a red circle", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (32, 32, 3)


def test_large_weights_are_stored_as_half(made):
    weights = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())


def test_latents_have_no_mean_and_unit_variance(pipe):
    pictures = np.stack([make_scene(0, i).image(32) for i in range(64)])
    with torch.no_grad():
        mean = pipe.vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    latents = (mean - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert float(latents.mean()) == pytest.approx(0, abs=0.1) and float(latents.std()) == pytest.approx(1, abs=0.1)
    assert abs(pipe.vae.config.shift_factor) > 1e-6


@pytest.mark.parametrize("long", [False, True])
def test_text_is_what_the_pipeline_makes_of_it(long):
    """Short, as LISA trains on it, and padded as the pipeline has it unless told otherwise."""
    model = denoiser()
    pipe = model.pipeline(vae=vae_of_sd())
    tokens = model.vary(model.tokens(CAPTIONS[:3]), 0.0 if long else 1.0)
    length = PIPELINE_TOKENS if long else model.length
    states, _, pooled, _ = pipe.encode_prompt(
        CAPTIONS[:3], None, None, do_classifier_free_guidance=False, max_sequence_length=length, device="cpu"
    )
    ours = model.encode(tokens)
    assert states.shape[1] == model.length + length
    assert torch.equal(ours[0], states) and torch.equal(ours[1], pooled)


def vae_of_sd():
    from lisa.train.pretrain.vae import make_vae

    settings = check_settings(PretrainConfig, tiny_pretraining.SMALL).vae
    return make_vae(settings, 32)


def test_every_parameter_but_the_unread_learns():
    """In the last block nothing comes of the text any more, so it asks no questions."""
    model = denoiser()
    tokens = model.tokens(CAPTIONS[:4])
    torch.nn.init.normal_(model.transformer.proj_out.weight)
    for name, module in model.transformer.named_modules():
        if name.endswith("linear") and "norm" in name:
            torch.nn.init.normal_(module.weight, std=0.1)
    model.predict(torch.randn(4, 4, 8, 8), torch.rand(4), tokens).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    attention = "transformer.transformer_blocks.1.attn"
    assert silent == {f"{attention}.{name}" for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")}


def test_the_velocity_starts_at_zero_and_blocks_as_the_identity():
    model = denoiser()
    seen = {}
    block = model.transformer.transformer_blocks[0]
    block.register_forward_hook(lambda m, args, kwargs, out: seen.update(into=kwargs, out=out), with_kwargs=True)
    velocity = model.predict(torch.randn(2, 4, 8, 8), torch.rand(2), model.tokens(CAPTIONS[:2]))
    assert not velocity.any()
    assert torch.equal(seen["out"][1], seen["into"]["hidden_states"])


def test_a_share_of_the_steps_sees_long_captions(monkeypatch):
    model = denoiser(transformer={**SMALL["transformer"], "long_captions": 0.25})
    step = DenoiserStep(model, Draws(0), check_settings(PretrainConfig, tiny_pretraining.SMALL).denoiser)
    lengths = []

    def predict(x_t, t, tokens):
        lengths.append(tokens["t5"].shape[1])
        return torch.zeros_like(x_t)

    monkeypatch.setattr(model, "predict", predict)
    batch = LatentBatch([0, 1], torch.zeros(2, 4, 8, 8), model.tokens(CAPTIONS[:2]))
    for number in range(200):
        step(batch, number)
    assert set(lengths) == {model.length, PIPELINE_TOKENS}
    assert 0.15 < np.mean(np.array(lengths) == PIPELINE_TOKENS) < 0.35


def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch):
    from lisa.build import pretraining

    whole, real = pretrain(config(tmp_path / "whole")), pretraining.run

    def stop_early(training):
        if training.total_steps == 4:
            training.callbacks = [*training.callbacks, tiny_pretraining.StopAt(2)]
        return real(training)

    monkeypatch.setattr(pretraining, "run", stop_early)
    assert pretrain(config(tmp_path / "run")) is None
    monkeypatch.setattr(pretraining, "run", real)
    resumed = pretrain(config(tmp_path / "run", resume=True))
    for part in ("transformer/diffusion_pytorch_model", "text_encoder_3/model"):
        ours, theirs = (load_file(folder / f"{part}.safetensors") for folder in (resumed, whole))
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_an_autoencoder_that_is_there_is_used_as_it_is(tmp_path):
    embedded = {"init": "tiny-sd", "channels": [24, 48, 64]}
    model = pretrain(config(tmp_path / "run", vae=embedded))
    name = "vae/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(model / name), load_file(f"{lisa.zoo.path('tiny-sd')}/{name}")
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert json.loads((model / "vae/config.json").read_text())["_name_or_path"] == "tiny-sd"  # no path of this machine


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        ({"init": "tiny-sd", "channels": [8, 8]}, "factor 4 and 4 latent channels; the configuration says 2 and 4"),
        ({"init": "tiny-sd", "latent_channels": 8}, "says 4 and 8"),
        ({"init": "/nowhere/vae"}, "VAE '/nowhere/vae' cannot be loaded.*tiny-sd"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused_before_any_work(tmp_path, vae, message):
    with pytest.raises(LisaError, match=message):
        pretrain(config(tmp_path / "run", vae=vae))
    assert not (tmp_path / "run").exists()


def test_heads_begin_by_looking_at_their_neighbours():
    """Of the positions alone every head finds the token at its offset; with a patch's content, still mostly."""
    network = denoiser(transformer={"heads": 5, "head_width": 32, "layers": 2}).transformer
    side, token = 4, (1, 2)  # of 8x8 cells, patch 2
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for number, block in enumerate(network.transformer_blocks):
        for content, least in ((0.0, 0.5), (1.0, 0.15)):
            hidden = block.norm2(network.pos_embed(content * latent))
            heads = [
                norm(layer(hidden).view(side * side, 5, 32)).transpose(0, 1)
                for norm, layer in ((block.attn.norm_q, block.attn.to_q), (block.attn.norm_k, block.attn.to_k))
            ]
            weights = (heads[0] @ heads[1].transpose(1, 2) / 32**0.5).softmax(-1)[:, token[0] * side + token[1]]
            for head, (down, right) in enumerate(OFFSETS[number]):
                wanted = (token[0] + down) * side + token[1] + right
                assert float(weights[head, wanted]) > least, (number, head, content)
