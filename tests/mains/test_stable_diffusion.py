"""Stable Diffusion 1.x and 2.x from folders, variants and single files; what is refused, and in which words."""

from __future__ import annotations

import json

import pytest
import torch

import single_file
import tiny
from lisa.common.errors import LisaError
from lisa.mains.base import latents_from_moments
from lisa.mains.stable_diffusion import StableDiffusionMain, load_stable_diffusion
from model_copies import edited


@pytest.fixture(scope="module")
def main(sd15):
    return tiny.load_main(sd15)


def refused(source, words, **options):
    with pytest.raises(LisaError, match=words) as caught:
        load_stable_diffusion(str(source), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "prediction", "factor"),
    [("sd15", "epsilon", 8), ("sd21", "v_prediction", 8), ("sd_small", "epsilon", 4)],
)
def test_folder(name, prediction, factor, request):
    source = request.getfixturevalue(name)
    main = load_stable_diffusion(str(source))
    assert main.process.prediction == prediction
    assert (main.latent_factor, main.latent_channels, main.source) == (factor, 4, str(source))
    for module in (main.network, main.pipeline.vae, main.pipeline.text_encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    moments = main.encode_moments(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert moments.shape == (2, 8, 32 // factor, 48 // factor)
    assert main.decode(moments[:, :4]).shape == (2, 3, 32, 48)


def test_null_entries_are_no_hindrance(sd15):
    index = json.loads((sd15 / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


def test_forward_is_the_unet(main):
    inputs, _ = tiny.make_inputs(main)
    text = inputs.context["encoder_hidden_states"]
    with torch.no_grad():
        assert torch.equal(
            main.forward(inputs.x_t, inputs.t, inputs.context), main.network(inputs.x_t, inputs.t, text)[0]
        )


def test_text_is_what_the_pipeline_would_use(main):
    ours = main.encode_text(["a red cat", ""])["encoder_hidden_states"]
    theirs, empty = main.pipeline.encode_prompt("a red cat", torch.device("cpu"), 1, True)
    assert torch.equal(ours, torch.cat([theirs, empty]))


def test_moments_are_the_scaled_posterior(main):
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, deviation = main.encode_moments(pixels).chunk(2, dim=1)
    posterior = main.pipeline.vae.encode(pixels).latent_dist
    scale = main.pipeline.vae.config.scaling_factor
    assert torch.equal(mean, posterior.mean * scale)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    drawn = posterior.sample(torch.Generator().manual_seed(4)) * scale
    torch.testing.assert_close(latents_from_moments(torch.cat([mean, deviation], 1), noise), drawn)
    torch.testing.assert_close(main.decode(mean), main.pipeline.vae.decode(posterior.mean).sample)


def test_shift_of_the_vae_counts(sd15):
    main = tiny.load_main(sd15)
    vae, pixels = main.pipeline.vae, torch.rand(1, 3, 16, 16)
    vae.register_to_config(shift_factor=0.5)
    shifted = StableDiffusionMain(main.pipeline, "here")
    mean, _ = shifted.encode_moments(pixels).chunk(2, dim=1)
    expected = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(mean, (expected - 0.5) * vae.config.scaling_factor)
    torch.testing.assert_close(shifted.decode(mean), vae.decode(expected).sample)


def test_variants(tmp_path, sd15):
    both = tiny.make_folder(tmp_path / "both", variants=(None, "fp16"))
    only = tiny.make_folder(tmp_path / "only", variants=("fp16",))
    plain = load_stable_diffusion(str(both)).network.conv_in.weight
    half = load_stable_diffusion(str(both), variant="fp16").network
    assert torch.equal(plain, tiny.load_main(sd15).network.conv_in.weight)
    assert torch.equal(half.conv_in.weight, plain.half().float()) and half.dtype == torch.float32
    found = load_stable_diffusion(str(only))  # the only one there is
    assert torch.equal(found.network.conv_in.weight, half.conv_in.weight)
    assert found.pipeline.text_encoder.dtype == found.pipeline.vae.dtype == torch.float32
    assert "'fp16'" in refused(both, "no weights of variant 'fp15'", variant="fp15")
    assert "plain weights" in refused(sd15, "no weights of variant", variant="fp16")


@pytest.fixture(scope="module")
def checkpoint(sd15, tmp_path_factory):
    return single_file.write_single_file(sd15, tmp_path_factory.mktemp("single") / "model.safetensors")


def test_single_file(checkpoint, sd15, main):
    loaded = load_stable_diffusion(str(checkpoint), config=str(sd15))
    inputs, _ = tiny.make_inputs(main)
    with torch.no_grad():
        ours = loaded.forward(inputs.x_t, inputs.t, loaded.encode_text(["a cat", "b"]))
        theirs = main.forward(inputs.x_t, inputs.t, main.encode_text(["a cat", "b"]))
    # Not bit-equal: weights mapped from a file lie at other addresses, which changes the order of vectorised sums.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.encode_moments(inputs.condition), main.encode_moments(inputs.condition))
    for name in ("unet", "vae", "text_encoder"):
        a, b = (getattr(each.pipeline, name).state_dict() for each in (loaded, main))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert loaded.process.prediction == "epsilon" and loaded.latent_factor == 8


def test_single_file_refusals(checkpoint, sd15, tmp_path):
    assert "Check model.path" in refused(tmp_path / "none.safetensors", "no checkpoint file .*none.safetensors")
    refused(checkpoint, "no folder .*nowhere", config=str(tmp_path / "nowhere"))
    refused(checkpoint, "no model_index.json", config=str(tmp_path))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    refused(broken, "cannot be loaded", config=str(sd15))


@pytest.mark.parametrize("prediction", ["sample", "flow_prediction"])
def test_prediction_types_that_have_no_residual(sd15, tmp_path, prediction):
    copy = edited(sd15, tmp_path / "m", "scheduler/scheduler_config.json", prediction_type=prediction)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"never read")  # refused before long work
    message = refused(copy, f"predicts '{prediction}'")
    assert "epsilon" in message and "v_prediction" in message and str(copy) in message


def test_prediction_type_of_a_pipeline_in_memory(sd15):
    pipeline = tiny.load_main(sd15).pipeline
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(LisaError, match="predicts 'sample'"):
        StableDiffusionMain(pipeline, "here")


def test_schedulers_of_other_families(sd15):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = tiny.load_main(sd15).pipeline
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(LisaError, match="FlowMatchEulerDiscreteScheduler"):
        StableDiffusionMain(pipeline, "here")


def test_inpainting_unet_is_refused(tmp_path):
    folder = tiny.make_folder(tmp_path / "inpaint", in_channels=9)
    assert "Inpainting" in refused(folder, "takes 9 channels, its latents have 4")


@pytest.mark.parametrize(("name", "value"), [("addition_embed_type", "text_time"), ("time_cond_proj_dim", 256)])
def test_unets_that_need_more_than_text(sd15, name, value):
    """A distilled one (LCM) wants the guidance, which its prior would not be given."""
    pipeline = tiny.load_main(sd15).pipeline
    pipeline.unet.register_to_config(**{name: value})
    with pytest.raises(LisaError, match=f"{name}={value!r}"):
        StableDiffusionMain(pipeline, "here")


def test_other_vaes_are_refused(sd15):
    from diffusers import AutoencoderTiny

    pipeline = tiny.load_main(sd15).pipeline
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    with pytest.raises(LisaError, match="AutoencoderTiny"):
        StableDiffusionMain(pipeline, "here")


def test_wrong_class_is_refused(sd15, tmp_path):
    copy = edited(sd15, tmp_path / "m", "model_index.json", _class_name="StableDiffusionXLPipeline")
    assert "StableDiffusionPipeline" in refused(copy, "StableDiffusionXLPipeline, which this kind of pair cannot use")


def test_missing_and_damaged_folders(sd15, tmp_path):
    assert "tiny-sd, tiny-sd3 and tiny-svd are embedded" in refused(tmp_path / "nowhere", "no folder .*nowhere")
    refused("tiny-ds", "no folder 'tiny-ds'")
    refused("a/b/c", "no folder 'a/b/c'")
    refused(tmp_path, "no model_index.json")
    (tmp_path / "picture.png").write_bytes(b"")
    refused(tmp_path / "picture.png", "is a file, but no checkpoint")
    empty = edited(sd15, tmp_path / "empty", "model_index.json")
    (empty / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(empty, "no weights in .*unet")
    (empty / "model_index.json").write_text("{")
    refused(empty, "model_index.json.* cannot be read")
    cut = edited(sd15, tmp_path / "cut", "model_index.json")
    weights = cut / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refused(cut, "cannot be loaded")


def test_dropped_encoders_are_missed_by_name(sd15):
    main = tiny.load_main(sd15)
    main.drop_encoders()
    for call, argument in ((main.encode_text, ["a"]), (main.encode_moments, torch.zeros(1, 3, 8, 8))):
        with pytest.raises(LisaError, match="dropped from memory"):
            call(argument)
    with pytest.raises(LisaError, match="dropped"):
        main.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(LisaError, match="dropped"):
        main.pipeline_components()
    main.to(torch.device("cpu"), torch.float32)
    main.forward(*(lambda i: (i.x_t, i.t, i.context))(tiny.make_inputs(main)[0]))


def test_reduced_precision_works_outside_autocast(sd15):
    main, exact = tiny.load_main(sd15), tiny.load_main(sd15)
    main.to(torch.device("cpu"), torch.bfloat16)
    assert main.network.dtype == torch.bfloat16 and main.pipeline.vae.dtype == torch.float32
    inputs, _ = tiny.make_inputs(main)
    with torch.no_grad():
        close = main.forward(inputs.x_t, inputs.t, main.encode_text(["a", "b"]))
        expected = exact.forward(inputs.x_t, inputs.t, exact.encode_text(["a", "b"]))
    torch.testing.assert_close(close.float(), expected, atol=0.1, rtol=0.1)
