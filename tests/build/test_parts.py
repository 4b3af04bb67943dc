"""From configuration to objects: learning rates, layers, crops, and what is refused before anything long."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import runs
import tiny
from lisa.build import parts
from lisa.build.launch import session
from lisa.common.errors import LisaError
from lisa.data.images import save_png
from lisa.data.sources import ScenesSource
from lisa.sample.pictures import sample_requests
from lisa.sides.union import ControlNetUnionSide
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings


def config(model, tmp_path, **changes):
    return check_settings(TrainConfig, runs.settings(tmp_path / "run", model, **changes))


@pytest.fixture
def built(sd_small, tmp_path):
    def build(**changes):
        given = config(sd_small, tmp_path, **changes)
        pair = parts.build_pair(given)
        aligner, schedule = parts.build_alignment(given, pair)
        return given, pair, aligner, schedule

    return build


def ids(parameters):
    return {id(parameter) for parameter in parameters}


def test_learning_rates_reach_their_parameters_only(built):
    given, pair, aligner, _ = built(
        train__learning_rate=0.01, train__zero_lr_multiplier=3.0, train__decoder_lr_multiplier=5.0
    )
    optimizer, clip = parts.build_optimizer(given, pair, aligner, torch.device("cpu"))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    side = pair.side.module
    zero = [*side.controlnet_down_blocks, side.controlnet_mid_block, side.controlnet_cond_embedding.conv_out]
    zero = ids(p for module in zero for p in module.parameters())
    decoder, all_side = ids(aligner.parameters()), ids(side.parameters())
    assert zero < all_side and not decoder & all_side
    assert rates == {
        **dict.fromkeys(all_side - zero, 0.01),
        **dict.fromkeys(zero, 0.03),
        **dict.fromkeys(decoder, 0.05),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates), "none twice"
    assert ids(clip["side"].parameters) == all_side and ids(clip["decoder"].parameters) == decoder
    assert not any(p.requires_grad for p in pair.main.network.parameters())
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    before = {key: next(p for p in side.parameters() if id(p) == key).detach().clone() for key in list(zero)[:1]}
    optimizer.step()  # Adam's first step is the learning rate, whatever the gradient
    for key, old in before.items():
        moved = (next(p for p in side.parameters() if id(p) == key).detach() - old).abs()
        assert float(moved.max()) == pytest.approx(0.03, rel=0.05)


def test_the_plain_arm_has_no_decoder(built):
    for changes in ({"align__enabled": False}, {"align__weight": 0}):
        given, pair, aligner, schedule = built(**changes)
        assert aligner is None and schedule is None
        optimizer, clip = parts.build_optimizer(given, pair, None, torch.device("cpu"))
        assert list(clip) == ["side"] and len(optimizer.param_groups) == 2
        assert tiny.traces(pair.side.module) == {}


def test_settings_of_the_alignment_arrive(built):
    _, _, aligner, schedule = built(
        align__layer=["down.1", "mid"],
        align__weight=0.7,
        align__weighting="min-snr",
        align__schedule="until-done",
        align__patience=2,
        align__min_delta=0.3,
        align__decoder_channels=100,
    )
    assert aligner.layers == ("down.1", "mid") and aligner.weight == 0.7
    assert (schedule._patience, schedule._min_delta) == (2, 0.3)
    assert aligner.decoders["mid"].out.in_channels == 100
    assert "snr" in type(aligner.weighting).__name__.lower()
    _, _, by_path, _ = built(align__layer="controlnet_mid_block")
    assert by_path.layers == ("controlnet_mid_block",)


def test_settings_of_a_step_arrive(built):
    given, pair, _, _ = built(
        align__target="shuffled", align__noises=3, align__warmup=4, train__steps=9, train__snr_gamma=2.0
    )
    assert vars(parts.alignment_options(given, pair)) == {"shuffled": True, "noises": 3, "warmup": 4, "teacher": None}
    times = torch.tensor([10.0, 900.0])
    snr = pair.main.process.snr_of_decoder_time(times)
    found = parts.main_weighting(given, pair)(torch.zeros(2, 1), times, update=False)
    assert torch.allclose(found, snr.clamp(max=2.0).float() / snr.float())
    given, pair, _, _ = built(align__teacher=1.0, align__teacher_decay=0.5)
    options = parts.alignment_options(given, pair)
    assert (options.shuffled, options.noises, options.warmup) == (False, 1, 0)
    assert (options.teacher.share, options.teacher.decay) == (1.0, 0.5)
    assert parts.main_weighting(given, pair) is None
    given, pair, _, _ = built(align__teacher=0.5, align__enabled=False)
    assert parts.alignment_options(given, pair).teacher is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"align__layer": "down.0", "align__decoder_channels": 8}, "decoder_channels=8 changes nothing"),
        ({"align__layer": "down.99"}, "has no layer 'down.99' (did you mean 'down."),
        ({"align__layer": "controlnet_mid_blok"}, "did you mean 'controlnet_mid_block'?"),
        ({"data__size": [30, 32]}, "data.size is (30, 32). For this main network both sides must be multiples of 4"),
        ({"side__init": "/nowhere"}, "there is no ControlNetModel folder '/nowhere'"),
    ],
)
def test_refused(built, changes, expected):
    with pytest.raises(LisaError) as caught:
        built(**changes)
    assert expected in str(caught.value)


def test_depth_of_a_side_network_that_is_given(sd_small, tmp_path):
    with pytest.raises(LisaError, match="side: depth is of a new side network; the one that init names has its own"):
        config(sd_small, tmp_path, side__init="somewhere", side__depth=2)


def test_only_a_union_has_kinds(built):
    with pytest.raises(LisaError, match=r"side.control_type is 0, but a ControlNetModel is for one kind. Leave it"):
        built(side__control_type=0)


def test_the_kind_of_a_union_is_trained_and_sampled(tmp_path, monkeypatch):
    """From the configuration, which the run keeps, into training and the pictures of ``lisa generate --run``."""
    import lisa
    from conformance import tiny_sdxl
    from lisa.build import generation, result

    raw = runs.settings(
        tmp_path / "run", tiny_sdxl.make_folder(tmp_path / "model"), side__control_type=2, data__size=64
    )
    raw["model"]["pair"] = "sdxl-controlnet-union"
    trained, calls = [], []
    forward = ControlNetUnionSide.forward

    def watched(self, *args):
        trained.append(self.control_type)
        return forward(self, *args)

    def sampled(pipeline, requests, settings, call):
        calls.append(call.more)
        return sample_requests(pipeline, requests, settings, call)

    monkeypatch.setattr(ControlNetUnionSide, "forward", watched)
    for module in (generation, result):
        monkeypatch.setattr(module, "sample_requests", sampled)
    lisa.train(raw, quiet=True)
    generation.generate(
        generation.GenerateOptions(run=tmp_path / "run", out=tmp_path / "made", count=1, steps=1, guidance=1.0)
    )
    assert set(trained) == {2} and len(calls) >= 3 and all(more == {"control_mode": [2]} for more in calls)
    several = (str(tmp_path / "run"), str(tmp_path / "run/side_network"))  # a run tells its kind, a folder does not
    together = {"side": several, "condition": [tmp_path / "made"] * 2, "prompt": "a", "out": tmp_path / "both"}
    generation.generate(
        generation.GenerateOptions(**together, steps=1, model=raw["model"]["path"], pair=raw["model"]["pair"])
    )
    assert calls[-1] == {"control_mode": [2, 0]}
    assert json.loads((tmp_path / "both" / "settings.json").read_text())["control_type"] == [2, None]
    assert "control_mode=[2]" in (tmp_path / "run" / "side_network" / "README.md").read_text()
    with pytest.raises(LisaError, match=r"side.control_type is 6, this ControlNetUnionModel tells 6 kinds"):
        parts.build_pair(check_settings(TrainConfig, raw | {"side": {"control_type": 6}}))


def test_a_warm_start_that_does_not_fit(built, sd15, tmp_path):
    other = tiny.make_pair(sd15)
    other.side.save(tmp_path / "side")
    with pytest.raises(LisaError, match="block_out_channels is"):
        built(side__init=str(tmp_path / "side"))


def test_a_warm_start(built, finished_run):
    _, pair, _, _ = built(side__init=str(finished_run))
    from safetensors.torch import load_file

    kept = load_file(finished_run / "side_network" / "diffusion_pytorch_model.safetensors")
    ours = pair.side.module.state_dict()
    assert ours.keys() == kept.keys() and all(torch.equal(ours[name], kept[name]) for name in kept)


def test_the_split_of_a_hub_data_set_is_passed_on(sd_small, tmp_path, monkeypatch):
    from lisa.data import sources

    asked = {}

    def hub(name, **options):
        asked.update(options, name=name)
        return ScenesSource("edges", count=8, size=32)

    monkeypatch.setattr(sources, "hub", hub)
    given = config(sd_small, tmp_path, data__source="hub:me/mine", data__split="validation", data__caption_column="cap")
    opened = parts.open_data(given.data, 0)
    assert asked["name"] == "me/mine" and asked["split"] == "validation" and asked["caption_column"] == "cap"
    assert len(opened.train) == 4 and len(opened.held_out) == 4
    assert not set(opened.train.keys) & set(opened.held_out.keys)


def test_held_out_samples_are_seen_as_in_training_but_never_mirrored(tmp_path):
    source = ScenesSource("edges", seed=1, count=6, size=32)
    for i in range(6):
        for part in ("image", "condition"):
            save_png(getattr(source[i], part), tmp_path / f"{part}s" / f"{i}.png")
    settings = check_settings(
        TrainConfig,
        {
            "data": {
                "source": str(tmp_path),
                "default_caption": "a",
                "size": [16, 24],
                "crop": "random",
                "flip": True,
                "held_out": 2,
            }
        },
    )
    opened = parts.open_data(settings.data, seed=4)
    samples = parts.Still(opened.held_out, opened.transform)
    for i in range(2):
        image, condition = parts.still(opened.transform)(
            *(getattr(opened.held_out[i], p) for p in ("image", "condition")), i
        )
        assert (samples[i].image == image).all() and (samples[i].condition == condition).all()
        assert image.shape == (16, 24, 3)
    other = parts.Still(opened.held_out, parts.open_data(settings.data, seed=5).transform)
    assert all((samples[i].image == other[i].image).all() for i in range(2)), (
        "the held-out set's own, whatever the seed"
    )
    assert samples.fingerprint == other.fingerprint and samples.keys == opened.held_out.keys
    trained = [parts.open_data(settings.data, seed=seed) for seed in (4, 5)]
    crops = [[each.transform.sample(each.train[i], i).image for i in range(4)] for each in trained]
    assert any((a != b).any() for a, b in zip(*crops, strict=True)), "those that are trained on depend on it"


def missing(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError


def test_packages_that_are_not_there(sd_small, tmp_path, monkeypatch):
    missing(monkeypatch, "bitsandbytes.optim")
    with pytest.raises(LisaError, match=r"train.optimizer=adamw-8bit needs bitsandbytes.*lisa-diffusion\[bnb\]"):
        parts.check_optimizer(config(sd_small, tmp_path, train__optimizer="adamw-8bit"))
    missing(monkeypatch, "wandb")
    with (
        pytest.raises(LisaError, match=r"log.tracker=wandb needs the package wandb.*lisa-diffusion\[wandb\]"),
        session(config(sd_small, tmp_path, log__tracker="wandb")),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_half_precision_without_a_gpu(sd_small, tmp_path):
    given = config(sd_small, tmp_path, train__mixed_precision="fp16")
    with (
        pytest.raises(LisaError, match=r"mixed_precision=fp16 needs a GPU; this device is cpu. Use.*bf16"),
        session(given),
    ):
        pass


def test_an_accelerator_that_is_in_use_already(sd_small, tmp_path):
    from accelerate import Accelerator

    Accelerator(cpu=True)
    given = config(sd_small, tmp_path, train__mixed_precision="bf16")
    with pytest.raises(LisaError, match="Start a new Python process"), session(given):
        pass


def test_a_network_that_cannot_recompute_is_refused(built, monkeypatch):
    from diffusers import ControlNetModel

    monkeypatch.setattr(ControlNetModel, "_supports_gradient_checkpointing", False)
    with pytest.raises(LisaError, match=r"ControlNetModel cannot recompute activations.*gradient_checkpointing=false"):
        built(side__gradient_checkpointing=True)
