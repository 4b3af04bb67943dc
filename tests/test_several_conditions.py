"""The page on several conditions and the benchmark keep their word: every command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lisa.cli.app import app
from runs import fresh_accelerate
from test_docs import ROOT, commands, small

__all__ = ["fresh_accelerate"]


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = commands((ROOT / "docs/several-conditions.md").read_text("utf-8"))
    assert len(found) == 8
    for command in found:
        invoke(*small(command)[1:])
    assert len(list(Path("runs/both").glob("*.png"))) == len(list(Path("runs/stacked/generated").glob("*.png"))) == 2


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """The script with few weights, its commands run in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compositional

    said = []

    def say(*arguments):
        said.append(arguments[0])
        sizes = ["train.batch_size=2", "sample.count=2", "sample.steps=1", "data.scenes=16"]
        invoke(*arguments, *(sizes if arguments[0] == "train" else []))

    monkeypatch.setattr(compositional, "say", say)
    monkeypatch.setattr(compositional, "ALONE", (1.0,))
    monkeypatch.setattr(compositional, "TOGETHER", ((1.0, 1.0), (0.5, 0.5)))
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "2", "--sampling", "1", "--held-out", "6", "--choose-on", "2", "--out", "row.json"]
    options += ["--picture", "picture.png"]
    monkeypatch.setattr(sys, "argv", ["compositional.py", *options])
    return compositional, said


def test_the_benchmark_writes_its_row_and_goes_on_where_it_was(benchmark):
    compositional, said = benchmark
    compositional.main()
    row = json.loads(Path("row.json").read_text())
    assert said.count("train") == 2 and row["samples"] == 4, "what chose the weights is not judged"
    assert row["weights"]["together"] in ("1, 1", "0.5, 0.5") and row["weights"]["lowres"] == "1"
    assert row["protocols"] == ["scenes/segmentation", "scenes/lowres"]
    gain = row["gain"]["together over segmentation alone"]["lowres"]["value"]
    assert gain == pytest.approx(
        row["fidelity"]["together"]["lowres"]["value"] - row["fidelity"]["segmentation"]["lowres"]["value"]
    )
    with Image.open("picture.png") as drawn:  # two conditions, three arms, the scene; four scenes chose no weight
        assert drawn.width == 2 * (6 * 64 + 5 * 4) and drawn.height > 2 * 4 * 64
    pictures = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.png")}
    said.clear()
    compositional.main()
    assert "train" not in said
    assert pictures == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.png")}
    assert json.loads(Path("row.json").read_text()) == row


def test_the_figures_of_the_page_are_the_recorded_ones():
    result = json.loads((ROOT / "benchmarks/results/2026-11-23-compositional-tiny-sd-cpu.json").read_text("utf-8"))
    page = " ".join((ROOT / "docs/several-conditions.md").read_text("utf-8").split())
    digits = {"segmentation": 3, "lowres": 2}
    rows = {"segmentation": "segmentation alone", "lowres": "low resolution alone", "together": "both together"}
    for arm, name in rows.items():
        told = [interval(result["fidelity"][arm][condition], n) for condition, n in digits.items()]
        assert f"| {name} | {result['weights'][arm]} | {told[0]} | {told[1]} |" in page
    for gains in result["gain"].values():
        assert all(gain["low"] > 0 for gain in gains.values())
        assert all(interval(gains[condition], n) in page for condition, n in digits.items())
    assert result["together_beats_each_alone_on_both"] and f"figures of {result['samples']} others" in page


def interval(found, digits):
    value, low, high = (f"{found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
