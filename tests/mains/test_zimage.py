"""Z-Image from folders: shards, variants; its sign, its clock, its lists; modules that are lent and given back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import runs
import tiny
from conformance import tiny_zimage
from conformance.row import randomise_zero_modules
from lisa.build import parts
from lisa.mains.zimage import ZImageMain, load_zimage
from lisa.pairs import Inputs, Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures
from lisa.sides.base import SideOptions
from lisa.sides.zimage import ZImageControlNetSide
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from model_copies import edited, refused

SPEC = pair_spec("zimage-controlnet")
CAPTIONS = ["a red cat on a mat, and more words than the other one", "dogs"]
OWN = {"control_layers", "control_all_x_embedder", "control_noise_refiner"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_zimage.make_folder(tmp_path_factory.mktemp("zimage") / "m", shard="20KB")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_zimage(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture
def pair(main):
    side = SPEC.make_side(main, SideOptions(depth=2))
    randomise_zero_modules(side)
    return Pair(SPEC, main, side)


def inputs(main, size=(12, 20)) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x_t, condition = (torch.randn(2, 4, *size, generator=generator) for _ in range(2))
    return Inputs(x_t, torch.tensor([0.25, 0.8]), main.encode_text(CAPTIONS), condition)


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple) == (4, 8, 16)
    assert (main.process.shift, main.process.model_time_scale) == (3.0, 1.0)


def test_other_folders_are_refused(folder, tmp_path, loaded):
    message = refused(load_zimage, str(edited(folder, tmp_path / "m", _class_name="ZImageOmniPipeline")))
    assert "ZImageOmniPipeline" in message and "ZImagePipeline" in message
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.transformer.register_to_config(siglip_feat_dim=8)
    assert "siglip_feat_dim=8" in refused(ZImageMain, pipeline, "here")
    pipeline = copy.deepcopy(loaded.pipeline)
    pipeline.vae.register_to_config(shift_factor=None)
    assert "shift_factor" in refused(ZImageMain, pipeline, "here")


def test_captions_come_back_as_the_pipelines_list(main):
    captions = list(CAPTIONS)
    context = {name: value.float() for name, value in main.encode_text(captions).items()}  # as a cache gives them back
    assert captions == CAPTIONS  # the pipeline writes into the list it is given
    assert context["cap_feats"].shape == (2, 512, 16)
    seen = []
    main.network.register_forward_pre_hook(lambda m, args: seen.append(args))
    with torch.no_grad():
        main.forward(torch.zeros(2, 4, 8, 8), torch.tensor([0.2, 0.2]), context)
    theirs, _ = main.pipeline.encode_prompt(list(CAPTIONS), torch.device("cpu"), False)
    assert [len(text) for text in seen[0][2]] == [len(text) for text in theirs] and len(theirs[0]) > len(theirs[1])
    for ours, expected in zip(seen[0][2], theirs, strict=True):
        torch.testing.assert_close(ours, expected)


def test_sign_and_guidance_are_the_pipelines(pair, monkeypatch):
    """What the pipeline hands to its scheduler is our prediction, noise - x_0; a guidance of 1 is none there too."""
    pipeline, steps = pair.pipeline(), []
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.scheduler.step

    def step(velocity, t, latents, **more):
        steps.append((velocity, t, latents.clone()))
        return own(velocity, t, latents, **more)

    monkeypatch.setattr(pipeline.scheduler, "step", step)
    passes = []
    pair.main.network.register_forward_pre_hook(lambda m, args: passes.append(len(args[0])))
    condition = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for guidance in (1.0, 3.0):
        settings = SamplerSettings(steps=1, guidance=guidance)
        list(sample_pictures(pipeline, [Request("0", "dogs", condition, seed=1)], settings, SPEC.call))
    assert passes == [1, 2]
    read = pair.read_condition(torch.from_numpy(condition).permute(2, 0, 1)[None] / 255)
    (alone, t, x_t), (guided, _, _) = steps
    with torch.no_grad():
        ours, without = (
            pair.control(Inputs(x_t, t[None] / 1000, pair.main.encode_text([caption]), read))
            for caption in ("dogs", "")
        )
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(without + 3.0 * (ours - without), guided, atol=1e-5, rtol=1e-4)


def test_padding_changes_no_prediction(pair):
    """Of the shorter caption, in a batch and alone."""
    batch = inputs(pair.main)
    alone = Inputs(batch.x_t[1:], batch.t[1:], pair.main.encode_text(CAPTIONS[1:]), batch.condition[1:])
    with torch.no_grad():
        both, one = pair.predict(batch), pair.predict(alone)
    torch.testing.assert_close(both.controlled[1:], one.controlled, atol=1e-5, rtol=1e-4)
    assert (both.controlled - both.prior).abs().max() > 1e-3


def test_what_is_borrowed_is_never_the_side_networks_own(pair, tmp_path):
    """Not before, not after a forward (even one that fails), not after sampling; nor is it trained, copied or saved."""

    def is_bare():
        names = {name.split(".")[0] for name in pair.side.module.state_dict()}
        return names == OWN and {name.split(".")[0] for name, _ in pair.side.module.named_parameters()} == OWN

    module = pair.side.module
    before = {name: getattr(module, name) for name in ("t_scale", "t_embedder", "x_pad_token", "rope_embedder")}
    assert is_bare() and set(before.values()) == {None}
    pair.predict(inputs(pair.main)).controlled.sum().backward()
    assert is_bare() and all(getattr(module, name) is None for name in before)
    with pytest.raises(RuntimeError):
        pair.side.forward(torch.zeros(2, 3, 8, 8), torch.zeros(2), inputs(pair.main).context, torch.zeros(2, 4, 8, 8))
    assert is_bare() and module.x_pad_token is None
    pipeline = pair.pipeline()
    assert pipeline.controlnet.t_embedder is pair.main.network.t_embedder
    assert pipeline.controlnet.control_layers is module.control_layers  # the weights in training, not a copy
    assert is_bare() and module.t_embedder is None and tiny.traces(module) == {}
    pair.side.save(tmp_path / "side")
    assert {name.split(".")[0] for name in SPEC.load_side(str(tmp_path / "side")).module.state_dict()} == OWN
    assert all(parameter.grad is None for parameter in pair.main.network.parameters())


def test_a_loaded_side_network_needs_its_main_network(pair, tmp_path):
    pair.side.save(tmp_path / "side")
    loaded = SPEC.load_side(str(tmp_path / "side"))
    batch = inputs(pair.main)
    assert "check_fit" in refused(loaded.forward, batch.x_t, batch.t, batch.context, batch.condition)


def test_new_side_network_copies_layers_at_their_places(main):
    side = SPEC.make_side(main, SideOptions(depth=3))
    assert list(side.module.config.control_layers_places) == [0, 2, 4]
    for i, place in enumerate((0, 2, 4)):
        ours, theirs = side.module.control_layers[i].state_dict(), main.network.layers[place].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert ours["after_proj.weight"].abs().max() == 0
    refiner = side.module.control_noise_refiner.state_dict()
    assert all(torch.equal(value, refiner[name]) for name, value in main.network.noise_refiner.state_dict().items())
    assert (
        refiner["0.attention.to_q.weight"].data_ptr() != main.network.noise_refiner[0].attention.to_q.weight.data_ptr()
    )
    assert len(SPEC.make_side(main, SideOptions()).layers()) == 1  # one for every five layers
    assert "1 to 6" in refused(SPEC.make_side, main, SideOptions(depth=7))
    assert "one picture" in refused(SPEC.make_side, main, SideOptions(conditions=2))


def test_later_versions_read_more_channels(main):
    """Version 2's ControlNets: inpainting channels that the pipeline fills with zeros, control in the refiner."""
    from diffusers import ZImageControlNetModel

    torch.manual_seed(2)
    module = ZImageControlNetModel(
        control_layers_places=[0, 3],
        control_refiner_layers_places=[0],
        control_in_dim=9,
        add_control_noise_refiner="control_noise_refiner",
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    side = ZImageControlNetSide(module)
    randomise_zero_modules(side)
    SPEC.check_fit(main, side)
    prediction = Pair(SPEC, main, side).predict(inputs(main))
    assert (prediction.controlled - prediction.prior).abs().max() > 1e-3
    prediction.controlled.sum().backward()
    module.register_to_config(control_in_dim=2)
    assert "reads 2 channels" in refused(SPEC.check_fit, main, side)
    module.register_to_config(control_in_dim=9, control_layers_places=[0, 6])
    assert "controls layer 6" in refused(SPEC.check_fit, main, side)
    module.register_to_config(control_layers_places=[0, 3], add_control_noise_refiner="control_layers")
    assert "add_control_noise_refiner is 'control_layers'" in refused(SPEC.check_fit, main, side)
    module.register_to_config(dim=64)
    assert "its dim is 64" in refused(SPEC.check_fit, main, side)


def test_gradient_checkpointing_changes_nothing(pair):
    """diffusers' forward reads an attribute that only we set; recomputation runs after what was lent is given back."""
    batch, gradients = inputs(pair.main), []
    for checkpointing in (False, True):
        if checkpointing:
            pair.side.module.enable_gradient_checkpointing()
            pair.main.network.enable_gradient_checkpointing()
        pair.side.module.zero_grad()
        pair.predict(batch).controlled.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in pair.side.module.parameters()])
    for plain, checked in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checked)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 0


def test_a_layer_without_a_name_is_measured_with_what_is_borrowed(pair, folder, tmp_path):
    path = "control_layers.1.attention.to_q"
    raw = runs.settings(tmp_path, folder, data__size=64, align__layer=path)
    aligner, _ = parts.build_alignment(check_settings(TrainConfig, raw), pair)
    assert aligner.layers == (path,)
    batch = inputs(pair.main)
    prediction = pair.predict(batch)
    target = torch.zeros_like(batch.x_t)
    terms = aligner(target, prediction.prior, pair.main.process.decoder_time(batch.t))
    assert terms.decoded[path].shape == target.shape
    assert pair.side.module.t_embedder is None
