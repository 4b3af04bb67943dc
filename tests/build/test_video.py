"""Whole trainings on clips: samples, fidelity, caches, what is left behind; and interrupted ones."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import lisa
import runs
from conformance import tiny_animatediff, tiny_svd, tiny_wan
from lisa.build import comparing, parts
from lisa.build.chosen import read_run
from lisa.build.result import TITLES
from lisa.cli.app import app
from lisa.common.runfolder import RunFolder
from lisa.data.samples import unstack_pictures
from lisa.pairs import pair_spec

FRAMES = 2
FAMILIES = {
    "svd-controlnet": (tiny_svd.make_folder, {"side__condition_init": "lsuv", "side__gradient_checkpointing": True}),
    "wan-vace": (tiny_wan.make_folder, {"data__frames": 5, "side__depth": 3, "align__layer": "block.1"}),
    "animatediff-controlnet": (tiny_animatediff.make_folder, {}),
}
CLIPS = {"data__source": "moving-scenes", "data__frames": FRAMES, "data__scenes": 6, "data__held_out": 2}
FEW = {"log__samples": 1, "sample__count": 2, "train__batch_size": 1}


def settings(out, name, folder, **changes):
    raw = runs.settings(out, folder, **{**CLIPS, **FEW, **FAMILIES[name][1], **changes})
    raw["model"]["pair"] = name
    return raw


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = FAMILIES[name][0](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_training_on_clips(name, folders, tmp_path):
    out, spec = tmp_path / "run", pair_spec(name)
    changes = {"log__fidelity_every": 2, "log__fidelity_samples": 2, "log__fidelity_share": None}
    summary = lisa.train(
        settings(out, name, folders(name), train__ema=0.9, log__samples_every=2, log__held_out_every=1, **changes),
        quiet=True,
    )
    run = RunFolder(out)
    assert summary["steps"] == 2 and all(event["alignment"] > 0 for event in run.read_events("train"))
    assert len(list(run.read_events("held_out"))) >= 2

    fidelity = summary["fidelity"]
    assert fidelity["samples"] == 2 and fidelity["protocol"] == "scenes/edges/frames"
    between = [fidelity["metrics"][metric]["with"] for metric in ("flicker", "warping_error")]
    for interval in (fidelity["with"], *between):
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    gain = fidelity["with"]["value"] - fidelity["without"]["value"]
    assert fidelity["gain"]["value"] == pytest.approx(gain)
    readings = list(run.read_events("fidelity"))
    assert [reading["step"] for reading in readings] == [2] and (out / "best").is_dir()
    assert summary["best"]["fidelity"]["value"] == readings[0]["edges"]["value"]

    (drawn,) = run.read_events("samples")
    sheet = out / "samples" / drawn["path"]
    assert summary["picture"] == str(sheet)
    columns = ["condition", *TITLES]
    assert drawn["grid"]["columns"] == columns
    with Image.open(out / "samples" / drawn["animation"]) as moving:
        assert moving.n_frames == read_run(out).data.frames and moving.size[0] < Image.open(sheet).size[0]
        assert moving.size == shown_size(drawn["animation_grid"], 4, 1)
    check_sheet(out, np.asarray(Image.open(sheet)), drawn["grid"])

    package = importlib.import_module(spec.package)
    _, found = getattr(package, spec.side_kind).from_pretrained(out / "side_network", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    card = (out / "side_network" / "README.md").read_text(encoding="utf-8")
    assert "scenes/edges/frames" in card and "frames" in card and (out / "side_network" / "samples.png").is_file()
    assert "](samples.webp)" in card
    assert (out / "side_network" / "samples.webp").read_bytes() == (out / "samples" / drawn["animation"]).read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_cost_of_what_is_given_away(name, folders, tmp_path):
    """With alignment and without it: the same files, keys, shapes, types and configuration; other weights."""
    found = {}
    for arm, enabled in (("lisa", True), ("plain", False)):
        raw = settings(tmp_path / arm, name, folders(name), align__enabled=enabled)
        lisa.train(raw, quiet=True)
        folder = tmp_path / arm / "side_network"
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        files = sorted(file.name for file in folder.iterdir())
        found[arm] = (files, (folder / "config.json").read_text(), weights)
    assert found["lisa"][:2] == found["plain"][:2]
    ours, theirs = found["lisa"][2], found["plain"][2]
    assert [(key, value.shape, value.dtype) for key, value in ours.items()] == [
        (key, value.shape, value.dtype) for key, value in theirs.items()
    ]
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours), "alignment did train otherwise"


def shown_size(layout, columns, rows, scale=2, size=32):
    """Width and height of an animation of square clips that lie as the layout says."""
    width = columns * (scale * size + layout["gap"]) - layout["gap"]
    return width, layout["head"] + rows * (scale * size + layout["gap"]) - layout["gap"]


def check_sheet(out, sheet, layout):
    """Condition and truth lie where the layout says, frame by frame."""
    config = read_run(out)
    data = parts.open_data(config.data, config.seed)
    sample = parts.Still(data.held_out, data.transform)[0]
    pitch = (sheet.shape[1] + layout["gap"]) / 4
    for column, clip in ((0, unstack_pictures(sample.condition)[0]), (3, sample.image)):
        for number, frame in enumerate(clip):
            left = round(column * pitch) + 2 * number * 33
            assert np.array_equal(sheet[layout["head"] :, left:][:64:2, :64:2], frame)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("svd-controlnet", {"data__cache": []}),  # first frames, and pixels, are encoded on the way
        ("svd-controlnet", {"train__mixed_precision": "bf16"}),
        ("wan-vace", {}),
        ("animatediff-controlnet", {}),
    ],
)
def test_interrupted_is_uninterrupted(name, changes, folders, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def raw(out, **more):
        return settings(out, name, folders(name), **changes, **more)

    lisa.train(raw(whole), quiet=True)
    with monkeypatch.context() as patch:
        runs.signal_at(patch, 1)
        assert lisa.train(raw(halves), quiet=True) is None
    assert lisa.train(raw(halves, resume="latest"), quiet=True)["steps"] == 2
    runs.assert_same(whole, halves)


def test_a_comparison_on_clips(folders, tmp_path, monkeypatch):
    """From the command to the report: what is measured between frames has a place in it, and clips move in it."""
    here = lambda file, stop: 0 if lisa.train(str(file), quiet=True) is not None else 130  # noqa: E731
    monkeypatch.setattr(comparing, "train_in_process", here)
    file, out = tmp_path / "clips.yaml", tmp_path / "compared"
    raw = settings(tmp_path / "unused", "svd-controlnet", folders("svd-controlnet"), log__held_out_every=2)
    file.write_text(yaml.safe_dump(raw))
    done = CliRunner().invoke(app, ["compare", str(file), "--arms", "plain,lisa", "--seeds", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "summary.json").read_text())["arms"]
    assert [row["arm"] for row in rows] == ["plain", "lisa"]
    for row in rows:
        judged = json.loads((out / row["arm"] / "seed-0" / "summary.json").read_text())["fidelity"]["metrics"]
        for name in ("flicker", "warping_error"):
            assert row["fidelities"]["edges"]["metrics"][name]["value"] == judged[name]["with"]["value"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "flicker (lower is better)" in page and "warping_error (lower is better)" in page
    moving = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert len(moving) == 5, "condition, without control, both arms, truth"
    for each in moving:
        with Image.open(io.BytesIO(base64.b64decode(each))) as shown:
            assert shown.n_frames == FRAMES
