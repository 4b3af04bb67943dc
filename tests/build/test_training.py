"""Whole trainings: interrupted is uninterrupted, the arms differ in the alignment alone, and what a run leaves."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lisa
import runs
from lisa.common.errors import LisaError, TrainingStopped
from lisa.common.runfolder import RunFolder
from lisa.core.schedule import UntilDoneSchedule
from lisa.pairs import Pair
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from lisa.train.step import ControlStep


def train(*args, **changes):
    return lisa.train(runs.settings(*args, **changes), quiet=True)


# Everything that has state of its own: an average, a schedule that finishes at the reading of step 4, a running
# weighting, accumulation, mirrored pictures, a warm-up; events every 2, readings every 4 steps: step 3 is between both.
RICH = {
    "train__steps": 6,
    "train__accumulation": 2,
    "train__ema": 0.9,
    "train__warmup": 4,
    "train__lr_schedule": "cosine",
    "align__schedule": "until-done",
    "align__weighting": "normalised",
    "data__flip": True,
    "log__every": 2,
    "log__held_out_every": 4,
    "log__samples_every": 6,
}


@pytest.fixture
def done_at_four(monkeypatch):
    """Control never sets in within a few steps: say that it has, and that it is done."""

    def observe(self, step, onset, gap):
        self._finished = self._finished or step >= 4

    monkeypatch.setattr(UntilDoneSchedule, "observe", observe)


@pytest.fixture
def priors(monkeypatch):
    """By optimiser step of a training pass, whether a prior was computed."""
    seen = {}
    call, predict = ControlStep.__call__, Pair.predict
    current = []

    def stepping(self, batch, step):
        current[:] = [step]
        try:
            return call(self, batch, step)
        finally:
            current.clear()

    def predicting(self, inputs, *, need_prior=True):
        if current:
            seen[current[0]] = need_prior
        return predict(self, inputs, need_prior=need_prior)

    monkeypatch.setattr(ControlStep, "__call__", stepping)
    monkeypatch.setattr(Pair, "predict", predicting)
    return seen


def test_interrupted_equals_uninterrupted(sd_small, tmp_path, monkeypatch, done_at_four, priors):
    """Bit for bit in weights, moving average, optimiser, events and summary; stopped between events and readings."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, sd_small, **RICH)
    assert priors == {0: True, 1: True, 2: True, 3: True, 4: False, 5: False}, (
        "done means that the prior is not computed"
    )
    aligned = ["alignment" in event for event in runs.events(whole, "train")]
    assert aligned == [True, True, False]
    for stop in (3, 5):
        with monkeypatch.context() as patch:
            runs.signal_at(patch, stop, signal.SIGTERM if stop == 3 else signal.SIGINT)
            assert train(parts, sd_small, **RICH, resume="latest") is None
        assert (parts / "checkpoints" / f"step-{stop:06d}" / "side_network" / "config.json").is_file()
        assert not (parts / "summary.json").exists()
    priors.clear()
    assert train(parts, sd_small, **RICH, resume="latest")["steps"] == 6
    assert priors == {5: False}, "what is done stays done"
    runs.assert_same(whole, parts)
    kinds = [event["kind"] for event in RunFolder(parts).read_events()]
    assert kinds.count("stopped") == kinds.count("resumed") == 2 and kinds[0] == "started"
    assert [e["reason"] for e in RunFolder(parts).read_events("stopped")] == ["SIGTERM", "SIGINT"]


def test_killed_without_warning_and_without_a_cache(sd_small, tmp_path, monkeypatch):
    """A crash after the checkpoint of step 2: later steps are computed and recorded again, once. Uncached as cached."""
    changes = {"train__steps": 4, "log__checkpoint_every": 2, "log__held_out_every": 3, "data__crop": "random"}
    cached, crashed = tmp_path / "cached", tmp_path / "crashed"
    train(cached, sd_small, **changes)
    original = ControlStep.__call__

    def crash(self, batch, step):
        if step == 3:
            raise MemoryError("killed")
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(ControlStep, "__call__", crash)
        with pytest.raises(MemoryError):
            train(crashed, sd_small, **changes, data__cache=[])
    assert [e["step"] for e in runs.events(crashed, "train")] == [1, 2, 3]
    (crashed / "events.jsonl").write_text((crashed / "events.jsonl").read_text() + '{"step": 3, "ki')
    train(crashed, sd_small, **changes, data__cache=[], resume="latest")
    runs.assert_same(cached, crashed)
    assert not (crashed / "cache").exists()


def test_weight_zero_is_the_plain_arm(sd_small, tmp_path):
    zero = train(tmp_path / "zero", sd_small, align__weight=0)
    plain = train(tmp_path / "plain", sd_small, align__enabled=False)
    runs.assert_same(tmp_path / "zero", tmp_path / "plain")
    assert zero["arm"] == plain["arm"] == "plain"
    assert "none (plain)" in (tmp_path / "zero" / "side_network" / "README.md").read_text()


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
    assert Path(summary["picture"]).is_file() and Path(summary["picture"]).parent == finished_run / "samples"
    assert summary["arm"] == "lisa" and summary["weights"] == "raw" and summary["skipped"] == 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(finished_run / "tracker")).Reload()
    assert {"loss", "control_gain", "held_out/gap"} <= set(curves.Tags()["scalars"])
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


def test_a_finished_run_can_be_resumed(finished_run, sd_small, tmp_path):
    """Nothing is trained again; the summary is that of the run, and more steps go on from there."""
    out = tmp_path / "again"
    shutil.copytree(finished_run, out)
    before = runs.weights(out)
    (out / "summary.json").unlink()
    lisa.train(runs.settings(out, sd_small, train__steps=3, resume="latest"), quiet=True)
    assert runs.weights(out) == before
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (out, finished_run))
    assert runs.figures(ours) == runs.figures(theirs) and Path(ours["picture"]).is_file()
    assert train(out, sd_small, train__steps=4, resume="3")["steps"] == 4
    changed = [event["changed"] for event in RunFolder(out).read_events("resumed")]
    assert changed[-1] == {"train.steps": [3, 4]}
    assert train(out, sd_small, train__steps=1, overwrite=True)["steps"] == 1
    config = (out / "config.yaml").read_text()
    assert "resume: null" in config and "overwrite: false" in config, "a configuration to go on with"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000001"]


def test_resuming_that_fails_loses_nothing(finished_run, sd_small, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "tracker" not in str(path)}
    with pytest.raises(LisaError, match=r"no checkpoint '17'.*Choices: step-000002, step-000003"):
        train(out, sd_small, resume="17")
    with pytest.raises(LisaError, match="damaged or does not fit this configuration"):
        train(out, sd_small, train__steps=5, align__enabled=False, resume="latest")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "tracker" not in str(path)}
    assert after == before, "neither config.yaml nor events"


def test_starting_anew_where_there_was_no_checkpoint_yet(sd_small, tmp_path, monkeypatch):
    """Killed before its first checkpoint: resume=latest starts anew, and the earlier events do not count."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ControlStep, "inputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(out, sd_small)
    assert [e["kind"] for e in RunFolder(out).read_events()] == ["started", "held_out"]
    with pytest.raises(LisaError, match="already holds a run"):
        train(out, sd_small)
    train(out, sd_small, resume="latest")
    assert [e["kind"] for e in RunFolder(out).read_events()][:2] == ["resumed", "held_out"]
    assert sum(e["kind"] == "held_out" and e["step"] == 0 for e in RunFolder(out).read_events()) == 1


def test_losses_that_are_not_finite(sd_small, tmp_path, monkeypatch):
    """A checkpoint with the last good weights, a message with causes; and the run can be continued."""
    out = tmp_path / "run"
    original = ControlStep.inputs

    def spoilt(self, batch, step):
        inputs, target = original(self, batch, step)
        return inputs, target * (float("nan") if step >= 1 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(ControlStep, "inputs", spoilt)
        with pytest.raises(TrainingStopped, match="not finite 2 steps in a row"):
            train(out, sd_small, train__steps=9, train__max_skipped=2)
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.name == "step-000003"
    kept = load_file(checkpoint / "side_network" / "diffusion_pytorch_model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    last = runs.events(out, "train")[-1]
    assert last["loss"] is None and last["skipped"] == 2
    (stopped,) = RunFolder(out).read_events("stopped")
    assert stopped["reason"] == "not finite"
    summary = train(out, sd_small, train__steps=4, train__max_skipped=2, resume="latest")
    assert summary["steps"] == 4 and summary["skipped"] == 2


def test_a_disk_that_fills_up_while_training(sd_small, tmp_path, monkeypatch):
    """The message of one checkpoint that failed; the one before is whole, and the run goes on from it."""
    out = tmp_path / "run"
    original = torch.save
    saves = []

    def full(value, file, *args, **kwargs):
        saves.append(file)
        if "step-000002" in str(file):
            Path(file).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file")
        return original(value, file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(LisaError, match=r"no space left on the disk.*step-000002.*still whole") as caught:
            train(out, sd_small, train__steps=3, log__checkpoint_every=1)
    assert caught.value.exit_code == 2 and len(saves) > 4
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000001"]
    train(out, sd_small, train__steps=3, resume="latest")
    train(tmp_path / "whole", sd_small, train__steps=3)
    assert runs.weights(out) == runs.weights(tmp_path / "whole")


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
    from lisa.data.images import save_png

    for i in range(8):
        sample = source[i]
        save_png(sample.image, tmp_path / "data" / "images" / f"{i}.png")
        save_png(sample.condition * (i > 0), tmp_path / "data" / "conditions" / f"{i}.png")
    raw = runs.settings(tmp_path / "run", sd_small, train__steps=1)
    raw["data"].update({"source": str(tmp_path / "data"), "default_caption": "a scene", "held_out": 2})
    summary = lisa.train(raw)
    captured = capsys.readouterr()
    assert "note: " in captured.err and "constant" in captured.err and captured.out == ""
    assert "step 1/1" in captured.err and "loss" in captured.err
    assert summary["fidelity"]["protocol"] == "pictures/edges"
