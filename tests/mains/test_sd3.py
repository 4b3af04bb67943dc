"""Stable Diffusion 3 and 3.5: real layouts, with T5 and without it, variants, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

import tiny
from conformance import row as rows
from conformance.calls import compare_with_pipeline
from conformance.tiny_sd3 import make_folder, make_pipeline, make_vae
from lisa.common.errors import LisaError
from lisa.mains.sd3 import StableDiffusion3Main, load_sd3
from lisa.pairs import Pair, pair_spec
from lisa.sides.base import SideOptions
from model_copies import edited

SPEC = pair_spec("sd3-controlnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_sd3(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def refused(source, words, **options):
    with pytest.raises(LisaError, match=words) as caught:
        load_sd3(str(source), **options)
    return str(caught.value)


def test_folder(folder, main):
    names = [path.name for path in (folder / "transformer").iterdir()]
    assert sum("-of-" in name for name in names) > 1 and "diffusion_pytorch_model.safetensors.index.json" in names
    assert "model.safetensors.index.json" in [path.name for path in (folder / "text_encoder_3").iterdir()]
    assert (main.process.prediction, main.process.shift, main.process.model_time_scale) == ("flow", 3.0, 1000.0)
    assert (main.latent_factor, main.latent_channels, main.size_multiple) == (8, 4, 16)
    for name in ("transformer", "vae", *main.text_encoders):
        module = getattr(main.pipeline, name)
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    moments = main.encode_moments(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert moments.shape == (2, 8, 4, 6) and main.decode(moments[:, :4]).shape == (2, 3, 32, 48)


def test_latents_are_shifted_and_scaled(main):
    pixels = torch.rand(1, 3, 32, 32)
    posterior = main.pipeline.vae.encode(pixels).latent_dist
    mean, deviation = main.encode_moments(pixels).chunk(2, dim=1)
    torch.testing.assert_close(mean, (posterior.mean - 0.0609) * 1.5305)
    torch.testing.assert_close(deviation, posterior.std * 1.5305)


def test_text_is_what_the_pipeline_would_use(main):
    ours = main.encode_text(["a red cat", ""])
    pipeline = stock_pipeline(main)
    embeds, empty, pooled, empty_pooled = pipeline.encode_prompt("a red cat", None, None)
    torch.testing.assert_close(ours["encoder_hidden_states"], torch.cat([embeds, empty]))
    torch.testing.assert_close(ours["pooled_projections"], torch.cat([pooled, empty_pooled]))


def stock_pipeline(main):
    return Pair(SPEC, main, SPEC.make_side(main, SideOptions())).pipeline()


def without_t5(folder, copied, how):
    """A folder as people make it who leave T5 out, which is half of the download."""
    entries = ("text_encoder_3", "tokenizer_3")
    index = json.loads((folder / "model_index.json").read_text())
    if how == "null":
        changed = index | {name: [None, None] for name in entries}
    elif how == "no entry":
        changed = {name: value for name, value in index.items() if name not in entries}
    else:
        changed = index
    shutil.copytree(folder, copied)
    (copied / "model_index.json").write_text(json.dumps(changed))
    for name in entries[: 1 if how == "tokenizer kept" else 2]:
        shutil.rmtree(copied / name)
    return copied


@pytest.mark.parametrize("how", ["null", "no entry", "folder removed", "tokenizer kept"])
def test_without_t5(folder, main, tmp_path, how):
    bare = load_sd3(str(without_t5(folder, tmp_path / "m", how)))
    assert bare.pipeline.text_encoder_3 is None and len(bare.encoder_modules("text")) == 2
    ours, full = (each.encode_text(["a cat"])["encoder_hidden_states"] for each in (bare, main))
    assert ours.shape == full.shape and torch.equal(ours[:, : tiny.WORDS], full[:, : tiny.WORDS])
    assert not ours[:, tiny.WORDS :].any() and full[:, tiny.WORDS :].any()
    assert stock_pipeline(bare).text_encoder_3 is None
    bare.drop_encoders()
    with pytest.raises(LisaError, match="text_encoder was dropped"):
        bare.encode_text(["a"])


def test_variants(tmp_path, main):
    both = make_folder(tmp_path / "both", variants=(None, "fp16"))
    only = make_folder(tmp_path / "only", variants=("fp16",), t5=False)
    weight = "transformer_blocks.0.attn.to_q.weight"
    plain = load_sd3(str(both)).network.get_parameter(weight)
    half = load_sd3(str(both), variant="fp16").network.get_parameter(weight)
    assert torch.equal(plain, main.network.get_parameter(weight))
    assert torch.equal(half, plain.half().float()) and half.dtype == torch.float32
    assert torch.equal(load_sd3(str(only)).network.get_parameter(weight), half)  # the only one there is
    assert "'fp16'" in refused(both, "no weights of variant 'fp15'", variant="fp15")
    _name_as_formerly(only / "transformer")
    assert torch.equal(load_sd3(str(only), variant="fp16").network.get_parameter(weight), half)
    assert torch.equal(load_sd3(str(only)).network.get_parameter(weight), half)
    (only / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    refused(only, "cannot be loaded")


def _name_as_formerly(folder):
    """The variant after the number of the part: most public fp16 weights in several files are called so."""
    (index,) = folder.glob("*.index.fp16.json")
    content = index.read_text()
    for part in sorted(folder.glob("*.fp16-*-of-*.safetensors")):
        stem, _, rest = part.name.partition(".fp16")
        former = f"{stem}{rest.removesuffix('.safetensors')}.fp16.safetensors"
        content = content.replace(part.name, former)
        part.rename(folder / former)
    index.write_text(content)
    assert "-of-" in content and ".fp16-" not in content


def test_what_is_refused(folder, tmp_path):
    wrong = edited(folder, tmp_path / "flux", "model_index.json", _class_name="FluxPipeline")
    assert "StableDiffusion3Pipeline" in refused(wrong, "a FluxPipeline, which this kind of pair cannot use")
    scheduler = "scheduler/scheduler_config.json"
    refused(edited(folder, tmp_path / "ddim", scheduler, _class_name="DDIMScheduler"), "DDIMScheduler, not one of rect")
    refused(edited(folder, tmp_path / "dynamic", scheduler, use_dynamic_shifting=True), "use_dynamic_shifting")
    refused(edited(folder, tmp_path / "vae", "vae/config.json", shift_factor=None), "no shift_factor")
    gone = edited(folder, tmp_path / "gone", "model_index.json", text_encoder_2=[None, None])
    refused(gone, "has no text_encoder_2")
    half = edited(folder, tmp_path / "half", "model_index.json", tokenizer_3=[None, None])
    refused(half, "a text_encoder_3 but no tokenizer_3")
    pipeline = make_pipeline()
    pipeline.vae = make_vae(channels=8)
    with pytest.raises(LisaError, match="takes 4 and gives 4 channels, its latents have 8"):
        StableDiffusion3Main(pipeline, "here")


def test_latents_beyond_the_positions_are_refused(main):
    context = main.encode_text(["a"])
    main.complete(context, torch.zeros(1, 4, 32, 16))
    with pytest.raises(LisaError, match="at most 256 pixels"):
        main.complete(context, torch.zeros(1, 4, 16, 34))


@pytest.mark.parametrize(("tokenizer", "length"), [(512, 256), (40, 40)])
def test_text_of_t5_is_as_long_in_training_as_in_pictures(tokenizer, length):
    """512 is what public tokenizers say; what a small model learnt to read is shorter."""
    pipeline = make_pipeline()
    pipeline.tokenizer_3.model_max_length = tokenizer
    main = StableDiffusion3Main(pipeline, "memory")
    pair = Pair(SPEC, main, SPEC.make_side(main, SideOptions()))
    assert pair.call.more == {"max_sequence_length": length}
    states = main.encode_text(["a cat"])["encoder_hidden_states"]
    assert states.shape[1] == pipeline.tokenizer.model_max_length + length
    rows.randomise_zero_modules(pair.side)
    compare_with_pipeline(pair, (16, 16))


def test_without_t5_the_length_is_the_pipelines(tmp_path):
    main = load_sd3(str(make_folder(tmp_path, t5=False)))
    assert main.call_options == {}
    assert main.encode_text(["a"])["encoder_hidden_states"].shape[1] == main.pipeline.tokenizer.model_max_length + 256
