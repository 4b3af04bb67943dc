"""Whole trainings: the arms differ in the alignment alone, and what a run leaves."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import lisa
import runs
from lisa.build import condition_start, launch
from lisa.build.launch import track_picture
from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.core.held_out import ConditionGap
from lisa.data.images import load_rgb, save_png
from lisa.data.scenes import Scene
from lisa.train.callbacks import progress_line
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from lisa.train.step import ControlStep
from runs import train


def test_weight_zero_is_the_plain_arm(sd_small, tmp_path):
    zero = train(tmp_path / "zero", sd_small, align__weight=0)
    plain = train(tmp_path / "plain", sd_small, align__enabled=False)
    runs.assert_same(tmp_path / "zero", tmp_path / "plain")
    assert zero["arm"] == plain["arm"] == "plain"
    assert "| alignment | none |" in (tmp_path / "zero" / "side_network" / "README.md").read_text()


def test_the_main_loss_can_be_weighted(sd_small, tmp_path):
    """And the card says so; without, it is as before."""
    losses, cards = {}, {}
    for gamma in (None, 0.01):
        out = tmp_path / str(gamma)
        train(out, sd_small, align__enabled=False, train__snr_gamma=gamma)
        losses[gamma] = [event["loss"] / event["mse"] for event in runs.events(out, "train")]
        cards[gamma] = (out / "side_network" / "README.md").read_text()
    assert losses[None] == [1, 1] and max(losses[0.01]) < 0.9
    assert "gamma 0.01" in cards[0.01] and "min-SNR" not in cards[None]


def test_arms_start_alike_and_see_the_same(sd_small, tmp_path, monkeypatch, finished_run):
    """Same initial weights, order of data, noise, noise levels and dropout; the alignment differs."""
    seen = {}
    original = ControlStep.inputs

    def inputs(self, batch, step):
        given, target = original(self, batch, step)
        kept = {"visits": batch.visits, "target": target, "x_t": given.x_t, "t": given.t, **given.context}
        seen.setdefault(name, []).append({**kept, "condition": given.condition})
        if step == 0:
            seen[f"{name} weights"] = {k: v.clone() for k, v in self.pair.side.module.state_dict().items()}
        return given, target

    monkeypatch.setattr(ControlStep, "inputs", inputs)
    for name, enabled in (("lisa", True), ("plain", False)):
        train(tmp_path / name, sd_small, align__enabled=enabled)
    for ours, theirs in zip(seen["lisa"], seen["plain"], strict=True):
        assert ours.pop("visits") == theirs.pop("visits")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(torch.equal(seen["lisa weights"][k], v) for k, v in seen["plain weights"].items())
    mse = [[event["mse"] for event in runs.events(tmp_path / name, "train")] for name in ("lisa", "plain")]
    assert mse[0][0] == mse[1][0], "the first step is the same"
    # Zero cost at inference: same files, keys, shapes and configuration.
    lisa_side, plain_side = (tmp_path / name / "side_network" for name in ("lisa", "plain"))
    weights = "diffusion_pytorch_model.safetensors"
    files = ["README.md", "config.json", "curves.png", weights, "samples.png"]
    assert sorted(p.name for p in lisa_side.iterdir()) == sorted(p.name for p in plain_side.iterdir()) == files
    ours, theirs = (load_file(side / weights) for side in (lisa_side, plain_side))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert json.loads((lisa_side / "config.json").read_text()) == json.loads((plain_side / "config.json").read_text())


def test_the_average_is_what_is_given_away(sd_small, tmp_path):
    out = tmp_path / "run"
    summary = train(out, sd_small, train__steps=3, train__ema=0.5, train__learning_rate=0.01)
    (checkpoint,) = (out / "checkpoints").iterdir()
    given = load_file(out / "side_network" / "diffusion_pytorch_model.safetensors")
    raw = load_file(checkpoint / "state" / "model.safetensors")
    shadow = next(
        state["shadow_params"]
        for file in sorted((checkpoint / "state").glob("custom_checkpoint_*.pkl"))
        if "shadow_params" in (state := torch.load(file, weights_only=True))
    )
    assert given.keys() == raw.keys() and any(not torch.equal(given[k], raw[k]) for k in raw)
    from diffusers import ControlNetModel

    loaded = ControlNetModel.from_pretrained(out / "side_network")
    for parameter, average in zip(loaded.parameters(), shadow, strict=True):
        assert torch.equal(parameter.detach(), average)
    assert (checkpoint / "side_network" / "diffusion_pytorch_model.safetensors").read_bytes() == (
        out / "side_network" / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert "exponential average (decay 0.5)" in (out / "side_network" / "README.md").read_text()
    assert summary["weights"] == "ema"


INTERVAL = {"value", "low", "high"}


def test_what_a_run_leaves(finished_run, sd_small):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["model"] == str(sd_small) and summary["condition"] == "edges" and summary["steps"] == 3
    assert summary["seconds"] > 0 and summary["peak_rss_mb"] > 50
    for name in ("control_gain", "condition_gap", "decoder_r2"):
        assert summary[name].keys() == INTERVAL
    for name in ("with", "without", "gain"):
        assert summary["fidelity"][name].keys() == INTERVAL
    assert summary["fidelity"]["protocol"] == "scenes/edges" and summary["fidelity"]["samples"] == 2
    beside = summary["fidelity"]["metrics"]["edge_f1"]
    assert beside["with"] == summary["fidelity"]["with"] and beside["higher_is_better"] is True
    assert Path(summary["picture"]).is_file() and Path(summary["picture"]).parent == finished_run / "samples"
    assert summary["arm"] == "lisa" and summary["weights"] == "raw" and summary["skipped"] == 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(finished_run / "tracker")).Reload()
    assert {"loss", "control_gain", "held_out/gap"} <= set(curves.Tags()["scalars"])
    (shown,) = curves.Images("samples")
    grid = load_rgb(Path(summary["picture"]))
    assert shown.step == 3 and (shown.height, shown.width) == grid.shape[:2]
    assert (np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))) == grid).all()
    kinds = [event["kind"] for event in RunFolder(finished_run).read_events()]
    assert kinds[:3] == ["started", "held_out", "train"]
    first = next(RunFolder(finished_run).read_events("train"))
    assert {"loss", "mse", "alignment", "decoder_r2", "control_gain", "grad_norm/side", "grad_norm/decoder"} <= set(
        first
    )
    names = [path.name for path in sorted((finished_run / "checkpoints").iterdir())]
    assert names == ["step-000002", "step-000003"]
    inside = sorted(path.name for path in (finished_run / "checkpoints" / "step-000003").iterdir())
    assert inside == ["decoder.safetensors", "side_network", "state"]
    card = (finished_run / "side_network" / "README.md").read_text()
    assert "raw weights" in card and "layer down.5, weight 0.2, plain weighting" in card and "| steps | 3 |" in card
    assert "| steps | 2 |" in (finished_run / "checkpoints/step-000002/side_network/README.md").read_text()


@pytest.mark.parametrize("form", ["config", "path", "mapping"])
def test_from_python(sd_small, tmp_path, form):
    """The three forms of lisa.train's argument; in mixed precision and back, within one process."""
    raw = runs.settings(tmp_path / "run", sd_small, train__steps=1, train__mixed_precision="bf16")
    raw["log"]["held_out_every"] = 1
    if form == "config":
        given = check_settings(TrainConfig, raw)
    elif form == "path":
        given = tmp_path / "a.yaml"
        given.write_text(json.dumps(raw))
    else:
        given = raw
    summary = lisa.train(given if form != "path" else str(given), quiet=True)
    assert summary["steps"] == 1 and summary["control_gain"]["value"] is not None
    if form == "mapping":
        assert train(tmp_path / "other", sd_small, train__steps=1)["steps"] == 1


def test_notes_about_the_data_are_said(sd_small, tmp_path, capsys):
    from lisa.data.sources import ScenesSource

    source = ScenesSource("edges", seed=1, count=8, size=32)
    for i in range(8):
        sample = source[i]
        save_png(sample.image, tmp_path / "data" / "images" / f"{i}.png")
        save_png(sample.condition * (i > 0), tmp_path / "data" / "conditions" / f"{i}.png")
    raw = runs.settings(tmp_path / "run", sd_small, train__steps=1)
    raw["data"].update({"source": str(tmp_path / "data"), "default_caption": "a scene", "held_out": 2})
    summary = lisa.train(raw)
    captured = capsys.readouterr()
    assert "note: " in captured.err and "constant" in captured.err and captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("train 1/1  ")]
    figure = r"-?\d\.\d{3}"
    told = re.fullmatch(rf"train 1/1  (loss {figure}  gap {figure}  gain {figure})  0:00:00 left", line)
    longest = progress_line("train", 500_000, 1_000_000, re.sub(figure, "-0.000", told[1]), left=100_000)
    assert longest.endswith("  1 day, 3:46:40 left") and len(longest) <= 80
    assert summary["fidelity"]["protocol"] == "pictures/edges"


@pytest.mark.parametrize(("name", "layout"), [("wandb", {}), ("tensorboard", {"dataformats": "NHWC"})])
def test_a_grid_is_given_to_each_tracker_in_its_way(tmp_path, name, layout):
    """W&B takes pictures and passes anything else on to its log, which knows no layout."""
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    save_png(picture, tmp_path / "grid.png")
    given = []
    tracker = SimpleNamespace(name=name, log_images=lambda values, step, **rest: given.append((values, step, rest)))
    track_picture(SimpleNamespace(trackers=[tracker]), "samples", tmp_path / "grid.png", 7)
    ((values, step, rest),) = given
    assert (values["samples"] == picture[None]).all() and (step, rest) == (7, layout)


def test_that_the_decoder_reads_nothing_is_noted(sd_small, tmp_path, monkeypatch, capsys):
    """Of a decoder that ought to read: not of one that is let go, or taught at random."""
    monkeypatch.setattr(ConditionGap, "decoder_reads_nothing", True)
    for name, settings, noted in (
        ("kept", {}, "try train.decoder_lr_multiplier=0.1, or another align.layer"),
        ("gentle", {"train__decoder_lr_multiplier": 0.1}, "try another align.layer"),
        ("let-go", {"align__schedule": "cosine"}, None),
        ("random", {"align__target": "shuffled"}, None),
    ):
        notes = train(tmp_path / name, sd_small, **settings)["notes"]
        told = capsys.readouterr().err
        assert [noted in note and f"note: {note}" in told for note in notes] == ([True] if noted else []), name


def test_a_polynomial_rate_with_a_warm_up_as_long_as_the_training(sd_small, tmp_path):
    """diffusers' schedule divides by the steps that are left."""
    summary = train(tmp_path / "run", sd_small, train__lr_schedule="polynomial", train__warmup=500)
    assert summary["steps"] == 2 and (tmp_path / "run" / "summary.json").is_file()


def test_processes_wait_for_one_that_works_alone(sd_small, tmp_path, monkeypatch):
    """The main one may fill caches for hours; between GPUs ten minutes are usual."""
    given = []
    monkeypatch.setattr(launch, "Accelerator", lambda **options: given.append(options) or Accelerator(**options))
    train(tmp_path / "run", sd_small, train__steps=1)
    (patience,) = given[0]["kwargs_handlers"]
    assert patience.timeout >= timedelta(hours=1)


def test_the_condition_embedding_can_start_with_what_differs(sd_small, tmp_path):
    """Measured on the training's own conditions, after everything else was drawn: the rest starts as ever."""
    start = {
        "train__steps": 1,
        "train__learning_rate": 1e-12,
        "data__condition": "skeleton",
        "train__weight_decay": 0.0,
    }
    kept = {}
    for name, init in (("default", "default"), ("lsuv", "lsuv"), ("again", "lsuv")):
        train(tmp_path / name, sd_small, side__condition_init=init, **start)
        kept[name] = load_file(tmp_path / name / "side_network" / "diffusion_pytorch_model.safetensors")
    first = "controlnet_cond_embedding.conv_in"
    assert not kept["lsuv"][f"{first}.bias"].abs().max() > 1e-9 and kept["default"][f"{first}.bias"].abs().max() > 1e-2
    assert kept["lsuv"][f"{first}.weight"].std() > 5 * kept["default"][f"{first}.weight"].std(), "strokes are sparse"
    assert all(torch.equal(kept["lsuv"][key], value) for key, value in kept["again"].items())
    rest = [key for key in kept["default"] if not key.startswith("controlnet_cond_embedding")]
    assert all(torch.equal(kept["lsuv"][key], kept["default"][key]) for key in rest)


def test_conditions_that_do_not_differ_leave_the_start_as_it_is(sd_small, tmp_path, monkeypatch, capsys):
    """By `auto`; `lsuv` was asked for by name."""
    monkeypatch.setattr(Scene, "condition", lambda self, name, size: np.zeros((size, size, 3), np.uint8))
    assert train(tmp_path / "auto", sd_small, side__condition_init="auto")["steps"] == 2
    assert "condition_init=auto leaves the start as it is: 12 conditions that do not differ" in capsys.readouterr().err
    with pytest.raises(LisaError, match="conditions that do not differ"):
        train(tmp_path / "lsuv", sd_small, side__condition_init="lsuv")


def test_a_resumed_run_has_its_embedding_from_the_checkpoint(sd_small, tmp_path, monkeypatch):
    """Also where it was to be resumed from the latest there is, and there was none: as `lisa compare` says it."""
    starts = []
    monkeypatch.setattr("lisa.build.training.start_by_data", lambda *given: starts.append(given))
    fresh = {"side__condition_init": "auto", "resume": "latest"}
    train(tmp_path / "run", sd_small, log__checkpoint_every=1, **fresh)
    assert len(starts) == 1
    train(tmp_path / "run", sd_small, log__checkpoint_every=1, train__steps=3, **fresh)
    assert len(starts) == 1


def test_what_is_measured_is_spread_over_the_samples(sd_small, tmp_path, monkeypatch):
    """Neighbours may be alike, such as the shots of one film; and of clips every frame is a picture."""
    seen = []
    monkeypatch.setattr(condition_start, "_FEWEST", 3)
    monkeypatch.setattr(condition_start, "_PIXELS", 3 * 32 * 32)
    monkeypatch.setattr(
        condition_start,
        "init_condition_embedding",
        lambda side, run, batches, *, latent: seen.extend([*batches, latent]),
    )
    train(tmp_path / "run", sd_small, side__condition_init="auto")
    assert seen == [[0, 4], [8], (8, 8)], "12 samples in batches of 2; latents a quarter of 32 pixels"


def test_a_pair_without_a_condition_embedding_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(LisaError, match="T2IAdapter has no embedding of its condition"):
        train(tmp_path / "run", tmp_path / "nowhere", model__pair="sd-t2i-adapter", side__condition_init="lsuv")
    with pytest.raises(LisaError, match="condition_init is of a new side network"):
        train(tmp_path / "run", tmp_path / "nowhere", side__condition_init="lsuv", side__init="somewhere")
