"""Stable Diffusion XL: real layouts, what is refused, and that training passes what the pipelines pass."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

import single_file
from conformance import row as rows
from conformance import tiny_sdxl
from lisa.common.errors import LisaError
from lisa.data.sources import ScenesSource
from lisa.data.transforms import PairedTransform
from lisa.mains.sdxl import SDXLMain, load_sdxl
from lisa.pairs import pair_spec
from lisa.train.dataset import EncodedData
from model_copies import edited

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl.make_folder(tmp_path_factory.mktemp("sdxl") / "base")


@cache
def _loaded(source):
    return load_sdxl(source)


@pytest.fixture
def main(folder):
    return copy.deepcopy(_loaded(str(folder)))


def refused(source, words, load=load_sdxl, **options):
    with pytest.raises(LisaError, match=words) as caught:
        load(str(source), **options)
    return str(caught.value)


def test_folder(main, folder):
    assert main.process.prediction == "epsilon"
    assert (main.latent_factor, main.latent_channels, main.size_multiple, main.source) == (8, 4, 8, str(folder))
    for module in (main.network, main.pipeline.vae, main.pipeline.text_encoder, main.pipeline.text_encoder_2):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, _ = main.encode_moments(pixels).chunk(2, dim=1)
    torch.testing.assert_close(mean, main.pipeline.vae.encode(pixels).latent_dist.mean * 0.13025)


def test_text_is_what_the_pipeline_would_use(main):
    """Both encoders and the pooled text; a dropped caption is what the unconditional pass gets: zeros."""
    captions = ["a red cat", "dogs"]
    embeds, negative, pooled, negative_pooled = main.pipeline.encode_prompt(captions, device=CPU)
    ours, empty = main.encode_text(captions), main.encode_unconditional()
    assert torch.equal(ours["encoder_hidden_states"], embeds) and torch.equal(ours["text_embeds"], pooled)
    assert embeds.shape[-1] == sum(tiny_sdxl.WIDTHS) and pooled.shape == (2, tiny_sdxl.POOLED)
    assert torch.equal(empty["encoder_hidden_states"], negative[:1]) and not empty["encoder_hidden_states"].any()
    assert torch.equal(empty["text_embeds"], negative_pooled[:1])


def test_folders_whose_unconditional_pass_is_the_empty_caption(tmp_path):
    main = load_sdxl(str(tiny_sdxl.make_folder(tmp_path / "m", zeros=False)))
    _, negative, _, pooled = main.pipeline.encode_prompt("a cat", device=CPU)
    empty = main.encode_unconditional()
    assert torch.equal(empty["encoder_hidden_states"], negative) and negative.any()
    assert torch.equal(empty["text_embeds"], pooled)
    spec = pair_spec("sdxl-controlnet")
    assert not spec.pipeline(main, None).config.force_zeros_for_empty_prompt


def test_dropped_captions_of_a_training_are_the_pipelines(main, tmp_path):
    data = EncodedData(ScenesSource("edges", seed=0, count=2, size=32), main, PairedTransform((32, 32)), tmp_path, ())
    assert {name: bool(value.any()) for name, value in data.empty.items()} == {
        "encoder_hidden_states": False,
        "text_embeds": False,
    }


def test_sizes_are_rows_then_columns(main):
    x_t = torch.zeros(2, 4, 8, 12)
    completed = main.complete({"text_embeds": torch.zeros(2, 3)}, x_t)
    assert completed["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2 and set(completed) == {
        "text_embeds",
        "time_ids",
    }


def test_sizes_and_pooled_text_reach_the_network(main):
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    context = main.complete(main.encode_text(["a cat"]), x_t)
    with torch.no_grad():
        plain = main.forward(x_t, t, context)
        for name in ("text_embeds", "time_ids"):
            assert not torch.equal(plain, main.forward(x_t, t, {**context, name: context[name] + 1}))


def test_variants_and_shards(tmp_path, folder):
    plain = load_sdxl(str(folder)).network.conv_in.weight
    both = tiny_sdxl.make_folder(tmp_path / "both", variants=(None, "fp16"), shard="40KB")
    names = {path.name for path in (both / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.json" in names
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert torch.equal(load_sdxl(str(both)).network.conv_in.weight, plain)
    half = load_sdxl(str(both), variant="fp16")
    assert torch.equal(half.network.conv_in.weight, plain.half().float()) and half.network.dtype == torch.float32
    only = tiny_sdxl.make_folder(tmp_path / "only", variants=("fp16",))  # what a download of one variant leaves
    assert {path.name for path in (only / "text_encoder_2").iterdir()} == {"config.json", "model.fp16.safetensors"}
    found = load_sdxl(str(only))
    assert torch.equal(found.network.conv_in.weight, half.network.conv_in.weight)
    assert found.pipeline.text_encoder_2.dtype == found.pipeline.vae.dtype == torch.float32
    assert "'fp16'" in refused(both, "no weights of variant 'fp15'", variant="fp15")


def test_single_file(folder, main, tmp_path):
    file = single_file.write_sdxl_file(folder, tmp_path / "model.safetensors")
    loaded = load_sdxl(str(file), config=str(folder))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        a, b = (getattr(each.pipeline, name).state_dict() for each in (loaded, main))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([3])
    with torch.no_grad():
        ours, theirs = (m.forward(x_t, t, m.complete(m.encode_text(["a cat"]), x_t)) for m in (loaded, main))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_folders_without_an_encoder_are_refused_before_weights_are_read(folder, tmp_path, name):
    """As the refiner's, which has the second encoder only."""
    changes = {name: [None, None], "_class_name": "StableDiffusionXLImg2ImgPipeline"}
    refiner = edited(folder, tmp_path / "refiner", "model_index.json", **changes)
    (refiner / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"never read")
    assert "refiner" in refused(refiner, f"refiner' has no {name}\\b")


def test_pipelines_without_an_encoder(main):
    main.pipeline.text_encoder = None
    with pytest.raises(LisaError, match="has no text_encoder"):
        SDXLMain(main.pipeline, "here")


def test_networks_that_take_other_inputs(main):
    unet = main.pipeline.unet
    unet.register_to_config(projection_class_embeddings_input_dim=tiny_sdxl.POOLED + 5 * tiny_sdxl.SIZE_CHANNELS)
    with pytest.raises(LisaError, match="takes 32 numbers beside the text, a pooled text of 12 and 6 sizes make 36"):
        SDXLMain(main.pipeline, "here")
    unet.register_to_config(addition_embed_type=None)
    with pytest.raises(LisaError, match="addition_embed_type=None"):
        SDXLMain(main.pipeline, "here")
    unet.register_to_config(time_cond_proj_dim=256)  # a distilled network, which wants the guidance too
    with pytest.raises(LisaError, match="time_cond_proj_dim=256"):
        SDXLMain(main.pipeline, "here")


def test_latents_that_are_shifted_by_channel(main):
    main.pipeline.vae.register_to_config(latents_mean=[0.1] * 4, latents_std=[1.0] * 4)  # as Playground's
    with pytest.raises(LisaError, match="latents_mean"):
        SDXLMain(main.pipeline, "here")


def test_wrong_class_is_refused(folder, sd15, tmp_path):
    assert "StableDiffusionXLPipeline" in refused(sd15, "holds a StableDiffusionPipeline, which this kind of pair")
    refused(folder, "holds a StableDiffusionXLPipeline", pair_spec("sd-controlnet").load_main)


def test_networks_of_another_size_do_not_fit(folder, main, tmp_path):
    """A ControlNet for a main network with another pooled text, or another number of transformer layers' text."""
    spec = pair_spec("sdxl-controlnet")
    other = SDXLMain(tiny_sdxl.make_pipeline(), "other")
    other.network = tiny_sdxl.make_unet(projection_class_embeddings_input_dim=99)
    side = spec.make_side(other, rows.SideOptions())
    with pytest.raises(LisaError, match="projection_class_embeddings_input_dim is 99"):
        spec.check_fit(main, side)
    spec.check_fit(main, spec.make_side(main, rows.SideOptions()))


def test_adapters_of_xl_need_even_latents(folder):
    assert pair_spec("sdxl-t2i-adapter").load_main(str(folder)).size_multiple == 16
