"""Wan from folders: schedulers, lengths of clips, what VACE reads; both in one model; what is refused."""

from __future__ import annotations

import copy
import re
import shutil

import numpy as np
import pytest
import torch

from conformance import row as rows
from conformance import tiny_wan
from lisa.build.result import Results
from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.core.precision import telling_parameter
from lisa.mains.base import latents_from_moments
from lisa.mains.wan import WanMain, load_wan
from lisa.mains.weights import Weights
from lisa.pairs import Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_clips, set_solver
from lisa.sides.attach import attach
from lisa.sides.base import SideOptions
from lisa.sides.wan_vace import WanVACESide
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from model_copies import refused

(ROW,) = tiny_wan.ROWS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("wan")


@pytest.fixture(scope="module")
def loaded(root):
    return load_wan(str(rows.model_folder(ROW, root)))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture
def pair(root):
    made = rows.make_pair(ROW, root)
    made.side.module.eval()
    return made


def fused_prediction(pair, inputs, scale):
    """Of diffusers' own model of both."""
    model = pair.side.module.fused(pair.main.network)
    layers = len(model.config.vace_layers)
    mask = torch.ones(len(inputs.x_t), pair.main.latent_factor**2, *inputs.x_t.shape[2:])
    with torch.no_grad():
        return model(
            inputs.x_t,
            pair.main.process.model_time(inputs.t),
            inputs.context["encoder_hidden_states"],
            control_hidden_states=torch.cat([inputs.condition, mask], dim=1),
            control_hidden_states_scale=torch.full((layers,), scale),
            return_dict=False,
        )[0]


def test_folder(main):
    assert (main.latent_channels, main.condition_latent_channels, main.latent_factor) == (4, 8, 4)
    assert (main.size_multiple, main.video, main.context_reads) == (8, True, "caption")
    assert (main.process.prediction, main.process.shift, main.process.model_time_scale) == ("flow", 3.0, 1000.0)
    text = main.encode_text(["a cat", ""])["encoder_hidden_states"]
    assert text.shape == (2, 512, 16)
    assert torch.equal(text[1:], main.encode_unconditional()["encoder_hidden_states"])


@pytest.mark.parametrize(("variant", "shard"), [(None, "10KB"), ("bf16", "10GB")])
def test_layouts(variant, shard, tmp_path):
    main = load_wan(str(tiny_wan.make_folder(tmp_path / "m", shard=shard, variant=variant)))
    for ours, theirs in zip(main.network.parameters(), tiny_wan.make_transformer().parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16).float() if variant else theirs)


def test_how_long_clips_may_be(main):
    assert [main.latent_frames(frames) for frames in (1, 5, 9, 81)] == [1, 2, 3, 21]
    for frames, remedy in ((0, "Use 1 or 5"), (4, "Use 1 or 5"), (6, "Use 5 or 9"), (8, "Use 5 or 9")):
        with pytest.raises(LisaError, match=f"clips of {frames} frames.*{remedy}"):
            main.latent_frames(frames)


def test_latents_are_those_of_the_autoencoder_shifted_and_scaled(main):
    pixels = torch.rand(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = main.encode_moments(pixels)
    assert moments.shape == (2, 8, 2, 4, 6)
    vae = main.component("vae")
    posterior = vae.encode(pixels).latent_dist
    mean = torch.tensor(vae.config.latents_mean).reshape(1, -1, 1, 1, 1)
    deviation = torch.tensor(vae.config.latents_std).reshape(1, -1, 1, 1, 1)
    torch.testing.assert_close(moments, torch.cat([(posterior.mean - mean) / deviation, posterior.std / deviation], 1))
    latents = latents_from_moments(moments, torch.zeros(2, 4, 2, 4, 6))
    torch.testing.assert_close(main.decode(latents), vae.decode(posterior.mean).sample, atol=1e-5, rtol=1e-4)


def test_conditions_are_what_the_pipeline_makes_of_frames(pair):
    """Without a mask: the latent of grey, that of the frames, and ones."""
    pipeline, pixels = pair.pipeline(), torch.rand(1, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0))
    video, mask, references = pipeline.preprocess_conditions(
        pixels.transpose(1, 2), None, None, 1, 16, 24, 5, torch.float32, torch.device("cpu")
    )
    with torch.no_grad():
        latents = pipeline.prepare_video_latents(video, mask, references)
    torch.testing.assert_close(pair.read_condition(pixels), latents, atol=1e-5, rtol=1e-4)
    assert (pipeline.prepare_masks(mask, references) == 1).all()


def test_the_latent_of_nothing_is_computed_once_for_clips_of_one_shape(main, monkeypatch):
    seen, encode = [], WanMain.encode_moments
    monkeypatch.setattr(WanMain, "encode_moments", lambda self, pixels: seen.append(pixels) or encode(self, pixels))
    clips = [torch.rand(2, 3, 5, 16, width, generator=torch.Generator().manual_seed(width)) for width in (16, 24)]
    grey = [main.encode_condition(clip)[:, :4] for clip in clips]
    assert [each.shape[-1] for each in grey] == [4, 6]
    for clip, expected in zip(clips[::-1], grey[::-1], strict=True):
        assert torch.equal(main.encode_condition(clip)[:, :4], expected)
    assert [len(clip) for clip in seen] == [2, 1, 2, 1, 2, 2, 1]
    main.drop_encoders()
    assert main._nothing is None
    with pytest.raises(LisaError, match="vae was dropped"):
        main.encode_condition(clips[0])


def test_the_prior_is_the_fused_model_at_scale_zero_and_control_is_it_at_scale_one(pair):
    """So that the plain transformer may stand for the fused one without control, which would run its branch too."""
    inputs, _ = rows.make_inputs(pair, (8, 12))
    assert torch.equal(pair.prior(inputs), fused_prediction(pair, inputs, 0.0))
    with torch.no_grad():
        controlled = pair.control(inputs)
    torch.testing.assert_close(controlled, fused_prediction(pair, inputs, 1.0), atol=1e-6, rtol=1e-6)
    assert (controlled - pair.prior(inputs)).abs().max() > 1e-3


def test_projections_run_twice_under_checkpointing_and_are_caught_once(root):
    """They lie inside the checkpointed blocks."""
    results = []
    for checkpointing in (False, True):
        pair = rows.make_pair(ROW, root)
        if checkpointing:
            pair.side.module.enable_gradient_checkpointing()
        aligner = attach(pair.side.module, "block.1", out_channels=4)
        for parameter in aligner.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        fired = []
        pair.side.module.vace_blocks[1].proj_out.register_forward_pre_hook(lambda *given, fired=fired: fired.append(1))
        inputs, target = rows.make_inputs(pair, (8, 12))
        prediction = pair.predict(inputs)
        terms = aligner(target, prediction.prior, inputs.t * 1000)
        (prediction.controlled.square().mean() + terms.loss).backward()
        assert len(fired) == 1 + checkpointing
        results.append([terms.loss, *[p.grad for p in pair.side.module.parameters()]])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_fused_folder_is_what_the_stock_pipeline_loads(pair, root, tmp_path):
    """By the card's own lines; and saved as one model, for programs that know nothing of LISA."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    model = rows.model_folder(ROW, root)
    config = check_settings(TrainConfig, {"model": {"path": str(model), "pair": ROW.pair}, "out": tmp_path / "run"})
    Results(config, RunFolder(config.out), None, pair, None).save_side(tmp_path / "side", 3)
    card = (tmp_path / "side" / "README.md").read_text()
    loading, calling = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1).split("# frames")
    for place, there in {"path/to/side_network": tmp_path / "side", f"path/to/{model.name}": model}.items():
        loading = loading.replace(place, str(there))
    scope: dict = {}
    exec(loading, scope)
    scope["pipe"].transformer.save_pretrained(tmp_path / "fused")
    fused = WanVACETransformer3DModel.from_pretrained(tmp_path / "fused")
    stock = WanVACEPipeline.from_pretrained(model, transformer=fused)
    again = pair.spec.load_side(str(tmp_path / "fused")).module
    assert again.config.vace_layers == pair.side.module.config.vace_layers == [0, 2, 4]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pair.side.module.parameters(), strict=True))
    condition = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    clips = []
    for pipeline in (pair.pipeline(), scope["pipe"], stock):
        rows.to_own_memory(pipeline)
        set_solver(pipeline)
        request, settings = Request("0", "a cat", condition, seed=1), SamplerSettings(steps=2, guidance=2.0)
        clips.append(next(sample_clips(pipeline, [request], settings, pair.call))[1])
    assert clips[0].shape == condition.shape
    assert all((clip == clips[0]).all() for clip in clips[1:])
    assert "num_frames=len(frames)" in calling and "text-to-video" in card
    compile("# frames" + calling, "card", "exec")


def test_sampling_is_in_the_main_networks_type(pair):
    pair.main.to(torch.device("cpu"), torch.bfloat16, only="network")
    pipeline = pair.pipeline()
    assert (
        pipeline.transformer.dtype == torch.bfloat16 and telling_parameter(pipeline.transformer).dtype == torch.bfloat16
    )
    assert {p.dtype for p in pair.side.module.parameters()} == {torch.float32}


def test_in_16_bits_it_is_what_diffusers_reads_and_predicts(root, pair):
    """diffusers keeps norms, time and modulation in float32, the first parameter among them."""
    folder = rows.model_folder(ROW, root)
    read = load_wan(str(folder), weights=Weights(torch.bfloat16))
    moved = load_wan(str(folder))
    moved.to(torch.device("cpu"), torch.bfloat16, only="network")
    types = {name: parameter.dtype for name, parameter in read.network.named_parameters()}
    assert types["scale_shift_table"] == torch.float32 and types["proj_out.weight"] == torch.bfloat16
    assert types == {name: parameter.dtype for name, parameter in moved.network.named_parameters()}
    theirs = telling_parameter(read.network), telling_parameter(pair.main.network)
    assert [parameter.dtype for parameter in theirs] == [torch.bfloat16, torch.float32]
    inputs, _ = rows.make_inputs(pair, (8, 12))
    pair.spec.check_fit(read, pair.side)
    half = Pair(pair.spec, read, pair.side)
    with torch.no_grad():
        outside, exact = half.predict(inputs), pair.predict(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            inside = half.predict(inputs)
    assert torch.equal(outside.prior, inside.prior), "autocast is off where the network is in 16 bits"
    for ours, expected in ((outside.prior, exact.prior), (outside.controlled, exact.controlled)):
        assert (ours - expected).norm() < 0.05 * expected.norm()


def test_depths_are_the_public_ones_unless_asked_for(loaded):
    network = tiny_wan.make_transformer(num_layers=30)
    side = WanVACESide.from_main(network, SideOptions(), 8, 4)
    assert side.module.config.vace_layers == list(range(0, 30, 2))
    network = tiny_wan.make_transformer(num_layers=10)
    assert WanVACESide.from_main(network, SideOptions(), 8, 4).module.config.vace_layers == [0, 5]
    with pytest.raises(LisaError, match=r"side.depth is 11.*Choose 1 to 10"):
        WanVACESide.from_main(network, SideOptions(depth=11), 8, 4)


def test_branches_of_another_wan_are_refused(pair):
    main = pair.main
    shallow = copy.deepcopy(main.pipeline)
    shallow.transformer = tiny_wan.make_transformer(num_layers=4)
    with pytest.raises(LisaError, match="it controls block 4, the main network has 4"):
        pair.spec.check_fit(WanMain(shallow, "here"), pair.side)
    wide = copy.deepcopy(main.pipeline)
    wide.transformer = tiny_wan.make_transformer(ffn_dim=64)
    with pytest.raises(LisaError, match="ffn_dim is 32, the main network's is 64"):
        pair.spec.check_fit(WanMain(wide, "here"), pair.side)
    side = pair.spec.make_side(main, SideOptions(depth=2))
    side.module.register_to_config(vace_in_channels=96)
    with pytest.raises(LisaError, match="reads 96 channels, conditions and mask have 24"):
        pair.spec.check_fit(main, side)
    with pytest.raises(LisaError, match="stacked conditions"):
        pair.spec.make_side(main, SideOptions(conditions=2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_dim": 8, "added_kv_proj_dim": 24}, "image-to-video"),
        ({"in_channels": 8}, "takes 8 and gives 4 channels"),
    ],
)
def test_other_transformers_are_refused(loaded, changes, words):
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer = tiny_wan.make_transformer(**changes)
    assert words in refused(WanMain, pipeline, "here")


def test_wan_2_2_is_refused(loaded):
    for name, value, words in (("boundary_ratio", 0.9, "two transformers"), ("expand_timesteps", True, "each token")):
        pipeline = copy.deepcopy(loaded.pipeline)
        pipeline.register_to_config(**{name: value})
        assert words in refused(WanMain, pipeline, "here")


def test_schedulers(loaded, root, tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert WanMain(pipeline, "here").process.shift == 5.0
    shutil.copytree(rows.model_folder(ROW, root), tmp_path / "m")
    UniPCMultistepScheduler().save_pretrained(tmp_path / "m" / "scheduler")
    shutil.rmtree(tmp_path / "m" / "transformer")  # never read: it is refused before long work
    assert "not set up for a flow" in refused(load_wan, str(tmp_path / "m"))


def test_a_side_network_without_main_network_says_so(pair, tmp_path):
    pair.side.save(tmp_path / "side")
    side = pair_spec(ROW.pair).load_side(str(tmp_path / "side"))
    inputs, _ = rows.make_inputs(pair, (8, 8))
    with pytest.raises(LisaError, match="no main network to borrow from"):
        side.forward(inputs.x_t, inputs.t, inputs.context, inputs.condition)


def test_the_fused_model_can_be_aligned_in_a_loop_of_ones_own(pair):
    model = pair.side.module.fused(pair.main.network)
    aligner = attach(model, ["block.0", "block.2"], out_channels=4)
    sizes = [(decoder.in_channels, decoder.upsamples) for decoder in aligner.decoders.values()]
    branch = attach(pair.side.module, ["block.0", "block.2"], out_channels=4)
    assert sizes == [(24, 1)] * 2 == [(decoder.in_channels, decoder.upsamples) for decoder in branch.decoders.values()]
