"""Stable Diffusion 3 and 3.5: real layouts, what the pipeline does with the condition, and the 8B ControlNets."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import lisa
import runs
import tiny
from conformance import row as rows
from conformance.calls import compare_with_pipeline
from conformance.tiny_sd3 import ROWS, make_folder, make_large_side, make_pipeline, make_vae
from lisa.build import parts
from lisa.build.checks import check_positions
from lisa.common.errors import LisaError
from lisa.mains.sd3 import StableDiffusion3Main, load_sd3
from lisa.pairs import Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures
from lisa.sides.base import SideOptions
from lisa.sides.sd3 import SD3ControlNetSide, entered
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
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


def make_pair(main, **module):
    """A pair with random zero modules; ``module``: changes of the side network's configuration."""
    side = SPEC.make_side(main, SideOptions())
    if module:
        side.module.register_to_config(**module)
        side = SD3ControlNetSide(side.module.requires_grad_(True))
    rows.randomise_zero_modules(side)
    return Pair(SPEC, main, side)


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
    pipeline = make_pair(main).pipeline()
    embeds, empty, pooled, empty_pooled = pipeline.encode_prompt("a red cat", None, None)
    torch.testing.assert_close(ours["encoder_hidden_states"], torch.cat([embeds, empty]))
    torch.testing.assert_close(ours["pooled_projections"], torch.cat([pooled, empty_pooled]))


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
    assert make_pair(bare).pipeline().text_encoder_3 is None
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


def test_positions_of_both_networks_count(main):
    side = SPEC.make_side(main, SideOptions())
    check_positions((256, 128), main, side)
    with pytest.raises(LisaError, match=r"272x64 pixels are larger .* at most 256 pixels"):
        check_positions((64, 272), main, side)
    smaller = SD3ControlNetSide(type(side.module).from_config(dict(side.module.config) | {"pos_embed_max_size": 8}))
    SPEC.check_fit(main, smaller)
    with pytest.raises(LisaError, match=r"256x128 pixels are larger .* at most 128 pixels"):
        check_positions((128, 256), main, smaller)


def test_positions_are_checked_before_a_training(folder, tmp_path):
    side = SPEC.make_side(load_sd3(str(folder)), SideOptions())
    SD3ControlNetSide(type(side.module).from_config(dict(side.module.config) | {"pos_embed_max_size": 4})).save(
        tmp_path
    )
    raw = runs.settings(tmp_path / "run", folder, data__size=80, side__init=str(tmp_path))
    raw["model"]["pair"] = SPEC.name
    with pytest.raises(LisaError, match=r"80x80 pixels are larger .* at most 64 pixels"):
        parts.build_pair(check_settings(TrainConfig, raw))


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


@pytest.mark.parametrize("zeros", [True, False])
def test_training_computes_what_the_pipeline_will(main, zeros):
    """Zero pooled text and an unshifted condition, or the text and the shift: as the configuration says."""
    pair = make_pair(main, force_zeros_for_pooled_projection=zeros)
    ours = compare_with_pipeline(pair, (16, 24))
    pair.side.module.register_to_config(force_zeros_for_pooled_projection=not zeros)
    assert (compare_with_pipeline(pair, (16, 24)) - ours).abs().max() > 1e-3  # the test could tell


def large_side(tmp_path):
    side = SPEC.load_side(str(make_large_side(tmp_path / "side")))
    rows.randomise_zero_modules(side)
    return side


def test_the_8b_layout_computes_what_the_pipeline_will(main, tmp_path):
    side = large_side(tmp_path)
    SPEC.check_fit(main, side)
    pair = Pair(SPEC, main, side)
    keys = list(side.module.state_dict())
    compare_with_pipeline(pair, (16, 24), ("hidden_states",))
    # The pipeline gives its ControlNet positions: not ours, which would be saved with them.
    assert side.module.pos_embed is None and list(side.module.state_dict()) == keys
    pipeline = pair.pipeline()
    assert pipeline.controlnet.pos_embed is not None
    with torch.no_grad():
        side.module.controlnet_blocks[0].bias.add_(1.0)  # trained on: the pipeline sees it
    assert torch.equal(pipeline.controlnet.controlnet_blocks[0].bias, side.module.controlnet_blocks[0].bias)


def test_every_picture_has_its_own_seed(main):
    """The pipeline draws the condition from torch's global generator, which belongs to the training."""
    pair = make_pair(main)
    pipeline = pair.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = np.random.default_rng(0)
    wanted = [Request(str(i), "a", generator.integers(0, 255, (64, 64, 3), dtype=np.uint8), 5 + i) for i in range(2)]
    settings = SamplerSettings(steps=2, guidance=2.0, batch_size=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    together = [picture for _, picture in sample_pictures(pipeline, wanted, settings, SPEC.call)]
    assert torch.equal(torch.get_rng_state(), before)
    alone = [picture for _, picture in sample_pictures(pipeline, wanted[1:], settings, SPEC.call)]
    assert np.array_equal(together[1], alone[0])
    torch.manual_seed(6)  # what the user of the stock pipeline has to do
    for module in (pipeline.transformer, pipeline.vae, pipeline.controlnet, pipeline.text_encoder):
        module.requires_grad_(True)  # as it comes out of from_pretrained
    theirs = pipeline(
        "a", control_image=Image.fromarray(wanted[1].condition), num_inference_steps=2, guidance_scale=2.0,
        height=64, width=64, generator=torch.Generator().manual_seed(6), output_type="np",
    ).images  # fmt: skip
    assert np.abs((theirs[0] * 255).round() - together[1]).max() <= 1


@pytest.mark.parametrize(("depth", "blocks", "reach"), [(12, 24, 12), (19, 38, 19), (3, 4, 2), (23, 24, 22), (1, 1, 0)])
def test_which_blocks_reach_the_transformer(depth, blocks, reach):
    assert len(entered(depth, blocks)) == reach


def test_depth(main):
    assert len(SPEC.make_side(main, SideOptions()).module.transformer_blocks) == 2  # half of four
    assert len(SPEC.make_side(main, SideOptions(depth=1)).module.controlnet_blocks) == 1
    with pytest.raises(LisaError, match=r"depth is 3, .* only 2 blocks.*Choices: 1, 2\."):
        SPEC.make_side(main, SideOptions(depth=3))
    with pytest.raises(LisaError, match="2 stacked conditions"):
        SPEC.make_side(main, SideOptions(conditions=2))


def test_depth_of_a_transformer_whose_depth_is_the_default(main):
    """diffusers would take a value left at its default for one of the ControlNet's."""
    from diffusers import SD3Transformer2DModel

    sizes = {k: main.network.config[k] for k in ("in_channels", "joint_attention_dim", "pooled_projection_dim")}
    small = {"sample_size": 16, "attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}
    network = SD3Transformer2DModel(**sizes, **small, pos_embed_max_size=16)
    before = dict(network.config)
    side = SD3ControlNetSide.from_main(network, SideOptions(depth=2))
    assert len(side.module.transformer_blocks) == side.module.config.num_layers == 2
    assert dict(network.config) == before and network.config.num_layers == 18


def test_a_deeper_side_network_trains_what_reaches_the_transformer(main):
    from diffusers import SD3ControlNetModel

    module = SD3ControlNetModel.from_transformer(copy.deepcopy(main.network), 3, num_extra_conditioning_channels=0)
    side = SD3ControlNetSide(module)
    SPEC.check_fit(main, side)
    rows.randomise_zero_modules(side)
    pair = Pair(SPEC, main, side)
    inputs, target = rows.make_inputs(pair, (16, 16))
    (pair.predict(inputs).controlled - target).square().mean().backward()
    dead = [name for name, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []
    assert not any(p.requires_grad for p in module.transformer_blocks[2].parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"joint_attention_dim": 32}, "its joint_attention_dim is 32, the main network's is 48"),
     ({"extra_conditioning_channels": 1}, "takes 1 channels beside"),
     ({"pooled_projection_dim": 16}, "pooled_projection_dim is 16")],
)  # fmt: skip
def test_side_networks_of_others_are_refused(main, change, words):
    side = SPEC.make_side(main, SideOptions())
    side.module.register_to_config(**change)
    with pytest.raises(LisaError, match=words):
        SPEC.check_fit(main, side)


def test_attach_measures_the_stride(main, tmp_path):
    for side in (SPEC.make_side(main, SideOptions()), large_side(tmp_path)):
        aligner = lisa.attach(side.module, "block.1", out_channels=4)
        decoder = next(iter(aligner.decoders.values()))
        assert (decoder.in_channels, decoder.upsamples) == (16, 1)
        aligner.remove()


def test_reduced_precision_works_outside_autocast(main, loaded):
    main.to(torch.device("cpu"), torch.bfloat16)
    pair, exact = make_pair(main), make_pair(copy.deepcopy(loaded))
    inputs, _ = rows.make_inputs(exact, ROWS[0].sizes[0])
    with torch.no_grad():
        torch.testing.assert_close(pair.predict(inputs).prior.float(), exact.predict(inputs).prior, atol=0.1, rtol=0.1)
