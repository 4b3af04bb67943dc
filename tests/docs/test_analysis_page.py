"""docs/analysis.md keeps its word: its commands run, and it names what the result holds."""

from __future__ import annotations

import shlex
from pathlib import Path

from typer.testing import CliRunner

import runs
from lisa.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")


def test_the_commands_run(sd_small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = PAGE.split("```")[1]
    commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
    assert [command[0] for command in commands] == ["train", "train", "analyse"]
    size = runs.settings(tmp_path, sd_small, data__scenes=32, data__held_out=8, train__steps=1, sample__batch_size=16)
    del size["out"], size["train"]["learning_rate"]
    for command in commands:
        extra = runs.arguments(size) if command[0] == "train" else ["--levels", "1"]
        done = CliRunner().invoke(app, [*command, *extra], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    report = (tmp_path / "runs/aligned/analysis/report.md").read_text()
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and any("down.5*" in line for line in lines)
    assert "runs/aligned" in done.stdout and "disentangled than runs/recipe" in " ".join(done.stdout.split())
    assert "down.5 aligned" in report and "scores-run-t0500.png" in report


def test_the_page_names_every_figure():
    from lisa.analyse.readings import FACTORS, TARGETS

    for name in (*FACTORS, *TARGETS, "first-order index", "total index", "disentanglement", "CKA"):
        assert name in PAGE
