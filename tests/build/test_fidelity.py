"""Fidelity while training: what is written, what it may cost, and which weights are kept."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

import lisa
import runs
from lisa.build.evaluation import evaluate
from lisa.build.fidelity import FidelityReadings, TimeShare
from lisa.build.generation import GenerateOptions, generate
from lisa.build.result import Results
from lisa.cli.report import print_summary
from lisa.common.errors import LisaError
from lisa.common.intervals import Interval
from lisa.common.runfolder import RunFolder
from lisa.sample.pictures import BrokenPictures
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from lisa.train.step import ControlStep

WEIGHTS = "diffusion_pytorch_model.safetensors"
READ = {"log__fidelity_every": 2, "log__fidelity_samples": 3, "log__fidelity_share": None}


def train(*args, **changes):
    return lisa.train(runs.settings(*args, **changes), quiet=True)


@pytest.fixture
def values(monkeypatch):
    """What the readings say, in turn: a random model's own are all alike."""
    said = []
    original = FidelityReadings._read

    def reading(self, step):
        def judge(images, samples, name):
            result = judge_as_ever(images, samples, name)
            return {**result, "fidelity": Interval(said[step // 2 - 1], 0, 1).to_json()}

        import lisa.build.fidelity as module

        judge_as_ever = module.evaluate_images
        with monkeypatch.context() as patch:
            patch.setattr(module, "evaluate_images", judge)
            original(self, step)

    monkeypatch.setattr(FidelityReadings, "_read", reading)
    return said


def test_the_share_is_kept_and_used():
    """Readings of 2 s every 4 s of training, 10% of the time: never beyond it, and as many as it allows."""
    time, made = TimeShare(0.1), []
    time.cost = 2.0
    for trained in range(4, 400, 4):
        if time.allows(trained):
            time.spent += 2.0
            made.append(trained)
        assert time.spent <= 0.1 * (trained + time.spent)
    assert made[:3] == [20, 36, 56]  # n readings need 2n/0.1 - 2n = 18n seconds of training
    assert len(made) == 396 // 18
    assert TimeShare(None, spent=1e9, cost=1e9).allows(0)


def test_readings_are_written_and_leave_the_training_alone(sd_small, tmp_path, finished_run):
    """Bit for bit the weights of a run without them; noise is the sample's; seconds are the readings' own."""
    changes = {"train__steps": 3, "log__held_out_every": 2, "log__checkpoint_every": 2}
    summary = train(tmp_path / "run", sd_small, **changes, **READ)
    assert {k: v for k, v in runs.weights(tmp_path / "run").items() if "best" not in k} == runs.weights(finished_run)
    (event,) = RunFolder(tmp_path / "run").read_events("fidelity")
    assert event.keys() == {"step", "kind", "time", "edges", "metric", "samples", "seconds"}
    assert event["step"] == 2 and event["metric"] == "edge_f1" and event["samples"] == 3 and event["seconds"] > 0
    assert event["edges"].keys() == {"value", "low", "high"}
    assert summary["best"] == {"step": 2, "condition": "edges", "fidelity": event["edges"], "metric": "edge_f1"}
    assert json.loads((tmp_path / "run/best/best.json").read_text()) == summary["best"]
    run, made = tmp_path / "run", tmp_path / "made"
    generate(GenerateOptions(run=run, side=str(run / "best"), out=made, count=3, steps=1, guidance=1.0))
    assert evaluate(made, run=run, count=3)["fidelity"] == event["edges"], "the seed is the sample's number"
    assert next(RunFolder(finished_run).read_events("fidelity"), None) is None
    assert (
        not (finished_run / "best").exists() and json.loads((finished_run / "summary.json").read_text())["best"] is None
    )


def test_the_best_reading_is_kept_as_a_plain_folder(sd_small, tmp_path, values, capsys):
    """Of three readings the second; its weights are the average at that step; it loads, and outlives later steps."""
    from diffusers import ControlNetModel

    values += [0.2, 0.7, 0.7]
    out = tmp_path / "run"
    raw = runs.settings(out, sd_small, train__steps=6, train__ema=0.5, log__checkpoint_every=4, **READ)
    summary = lisa.train(raw, quiet=True)
    assert summary["best"]["step"] == 4 and summary["best"]["fidelity"]["value"] == 0.7, "of equal ones the first"
    assert [e["edges"]["value"] for e in RunFolder(out).read_events("fidelity")] == values
    assert sorted(p.name for p in (out / "best").iterdir()) == ["README.md", "best.json", "config.json", WEIGHTS]
    kept, then = load_file(out / "best" / WEIGHTS), load_file(out / "checkpoints/step-000004/side_network" / WEIGHTS)
    raw_then = load_file(out / "checkpoints/step-000004/state/model.safetensors")
    assert all((kept[name] == then[name]).all() for name in then), "the average of step 4"
    assert any((kept[name] != raw_then[name]).any() for name in then)
    ControlNetModel.from_pretrained(out / "best")
    assert "| steps | 4 |" in (out / "best/README.md").read_text()
    card = " ".join((out / "side_network/README.md").read_text().split())
    assert "the line is read on 3 fixed samples while training" in card
    print_summary(summary, check_settings(TrainConfig, raw))
    assert f"best reading: 0.700 at step 4 ({out / 'best'})" in capsys.readouterr().out.replace("\n", "")


def test_interrupted_killed_and_started_anew(sd_small, tmp_path, monkeypatch, values):
    """The best folder goes with the checkpoint: what came after it is given up, and made again."""
    values += [0.5, 0.9, 0.1]
    changes = {"train__steps": 6, "log__checkpoint_every": 3, **READ}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, sd_small, **changes)
    original = ControlStep.__call__

    def crash(self, batch, step):
        if step == 5:
            raise MemoryError("killed")
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(ControlStep, "__call__", crash)
        with pytest.raises(MemoryError):
            train(parts, sd_small, **changes)
    best = parts / "best" / "best.json"
    assert json.loads(best.read_text())["step"] == 4, "beyond the checkpoint of step 3"
    values[1] = 0.3  # what the steps after the checkpoint come to this time
    assert train(parts, sd_small, **changes, resume="latest")["best"]["step"] == 2
    at_two = load_file(parts / "best" / WEIGHTS)
    values[1] = 0.9
    shutil.rmtree(parts / "checkpoints/step-000006")
    train(parts, sd_small, **changes, resume="latest")
    runs.assert_same(whole, parts)
    ours, theirs = (load_file(run / "best" / WEIGHTS) for run in (whole, parts))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert any((ours[name] != at_two[name]).any() for name in ours)
    shutil.rmtree(parts / "checkpoints")
    values[:2] = [0.0, 0.0]
    assert train(parts, sd_small, train__steps=2, resume="latest", **READ)["best"]["fidelity"]["value"] == 0


def test_a_reading_that_takes_too_long_is_left_out_and_told_once(sd_small, tmp_path, monkeypatch, capsys):
    asked = []
    original = Results.pictures

    def pictures(self, samples, scale):
        asked.append(len(samples))
        return original(self, samples, scale)

    monkeypatch.setattr(Results, "pictures", pictures)
    changes = {"train__steps": 4, "log__fidelity_every": 1, "log__fidelity_samples": 4, "log__fidelity_share": 1e-6}
    summary = train(tmp_path / "run", sd_small, **changes, sample__count=3, log__samples=3)
    run = RunFolder(tmp_path / "run")
    assert asked.count(1) == 1 and asked.count(4) == 0, "one picture tells what a reading would cost"
    (skipped,) = run.read_events("fidelity_skipped")
    assert skipped["step"] == 1 and skipped["share"] == 1e-6 and skipped["cost"] > 0
    assert capsys.readouterr().err.count("log.fidelity_share") == 1
    assert summary["best"] is None and not run.best.exists() and not list(run.read_events("fidelity"))


def test_broken_pictures_are_no_reading(sd_small, tmp_path, monkeypatch):
    original = Results.pictures

    def pictures(self, samples, scale):
        if len(samples) == 3:
            raise BrokenPictures("not finite")
        return original(self, samples, scale)

    monkeypatch.setattr(Results, "pictures", pictures)
    summary = train(tmp_path / "run", sd_small, **READ)
    assert summary["best"] is None and summary["fidelity"] is not None
    assert [e["step"] for e in RunFolder(tmp_path / "run").read_events("broken_pictures")] == [2]


def test_what_a_protocol_lacks_is_said_before_the_run_folder_is_made(sd_small, tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise LisaError("this needs the package 'skimage'")

    import lisa.evaluate.protocols as protocols

    with monkeypatch.context() as patch:
        patch.setattr(protocols, "outlines", missing)
        with pytest.raises(LisaError, match="skimage"):
            train(tmp_path / "run", sd_small)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "exists", lambda *_: False)
        summary = train(tmp_path / "other", sd_small, **READ)
    assert "no protocol judges edges: fidelity is not read" in capsys.readouterr().err
    assert summary["fidelities"] == {} and summary["best"] is None
