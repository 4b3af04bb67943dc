"""Trainings that end early, by a signal, a crash, a full disk or a loss: continued, they are as if uninterrupted."""

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
from lisa.build.result import Results
from lisa.common.errors import LisaError, TrainingStopped
from lisa.common.runfolder import RunFolder
from lisa.core.schedule import UntilDoneSchedule
from lisa.pairs import Pair
from lisa.train.checkpoint import Checkpoints
from lisa.train.step import ControlStep
from runs import train

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


def test_interrupted_equals_uninterrupted_with_every_way_to_align(sd_small, tmp_path, monkeypatch):
    """The teacher's average and the balance's norms belong to a checkpoint; the warm-up ends where it would."""
    ways = {"balanced": True, "teacher": 0.5, "teacher_decay": 0.5, "warmup": 2, "noises": 2, "decoder_channels": 16}
    ways["decoder_reads"] = "prior"
    changes = {"train__steps": 5, **{f"align__{name}": value for name, value in ways.items()}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, sd_small, **changes)
    assert ["mse" in event for event in runs.events(whole, "train")] == [False, False, True, True, True]
    for stop in (1, 4):
        with monkeypatch.context() as patch:
            runs.signal_at(patch, stop, signal.SIGTERM)
            assert train(parts, sd_small, **changes, resume="latest") is None
    assert train(parts, sd_small, **changes, resume="latest")["steps"] == 5
    runs.assert_same(whole, parts)
    decoder = load_file(next((parts / "checkpoints").iterdir()) / "decoder.safetensors")
    assert float(decoder["balances.down_5.count"]) > 0 and decoder["decoders.down_5.out.weight"].shape[1] == 16
    assert decoder["decoders.down_5.join.weight"].shape[1] == 16 + 4 + 4


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


def test_what_fails_beside_the_training_loses_no_step(sd_small, tmp_path, monkeypatch):
    """Samples are larger than a training step: memory may suffice for one and not for the other."""
    changes = {"train__steps": 4, "log__samples_every": 3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, sd_small, **changes)

    def draw(self, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "draw_samples", draw)
        with pytest.raises(torch.OutOfMemoryError):
            train(broken, sd_small, **changes)
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["step-000003"]
    assert train(broken, sd_small, **changes, resume="latest")["steps"] == 4
    assert runs.weights(whole) == runs.weights(broken)
    assert [e["step"] for e in runs.events(broken, "samples")] == [4]


def test_a_checkpoint_that_fails_is_told_and_not_tried_again(sd_small, tmp_path, monkeypatch):
    tried = []

    def save(self, step):
        tried.append(step)
        raise LisaError("the disk is full")

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(LisaError, match="the disk is full"):
        train(tmp_path / "run", sd_small, train__steps=4, log__checkpoint_every=2)
    assert tried == [2]


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


def test_what_was_given_up_is_not_returned_to(finished_run, sd_small, tmp_path, monkeypatch):
    """Resumed from an earlier step and killed before the next checkpoint: "latest" is where it was resumed from."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with monkeypatch.context() as patch:
        patch.setattr(ControlStep, "inputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(out, sd_small, train__steps=3, train__learning_rate=5e-4, resume="2")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("how", [{"resume": "latest"}, {"overwrite": True}])
def test_one_training_at_a_time_in_a_folder(finished_run, sd_small, tmp_path, monkeypatch, how):
    """Another one is refused before it loads a model; what the first has written stays as it is."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with RunFolder(out).locked(), monkeypatch.context() as patch:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        patch.setattr(runs.lisa.build.training.parts, "build_pair", lambda *_: 1 / 0)
        with pytest.raises(LisaError, match=r"another process is training in .*run.*Wait until it has"):
            train(out, sd_small, **how)
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_training_has_its_folder_for_itself_until_it_ends(sd_small, tmp_path, monkeypatch):
    """However it ends."""
    out, original, refused = tmp_path / "run", ControlStep.inputs, []

    def inputs(self, batch, step):
        with pytest.raises(LisaError, match="another process is training"):
            RunFolder(out).check(overwrite=False, resume=True)
        refused.append(step)
        return original(self, batch, step) if step < 1 else 1 / 0

    monkeypatch.setattr(ControlStep, "inputs", inputs)
    with pytest.raises(ZeroDivisionError):
        train(out, sd_small)
    assert refused
    RunFolder(out).check(overwrite=False, resume=True)


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
