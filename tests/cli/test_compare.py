"""``lisa compare`` as it is typed: every command of its page, with made-up runs in place of trainings."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lisa.build import comparing
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.compare.speed_up import LEVELS
from made_runs import make_run, saturating

PAGE = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()
]


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Trainings that take no time: aligned runs take half the steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"steps": 1000}, "log": {"held_out_every": 20}}))
    done = []

    def launch(file, stop):
        config = yaml.safe_load(file.read_text())
        run = Path(config["out"])
        curve = saturating(50 if config["align"]["enabled"] else 100)
        make_run(run.parent.parent, run.parent.name, config["seed"], curve, steps=config["train"]["steps"], base=config)
        done.append((run.parent.name, config["seed"]))
        return 130 if stop.requested else 0

    monkeypatch.setattr(comparing, "train_in_process", launch)
    monkeypatch.setattr(comparing, "_check_arms", lambda waiting: None)  # its own tests load the model
    return done


def test_every_command_of_the_page_runs(made_up):
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        assert command[:2] == ["lisa", "compare"]
        done = invoke(*command[2:])
        assert done.exit_code == 0, f"{shlex.join(command)}\n{done.output}\n{done.exception}"
    assert Path("runs/compare/report.html").is_file() and Path("runs/merged/report.html").is_file()


def test_the_page_defines_the_levels():
    for share in LEVELS:
        assert f"{share:.0%}" in PAGE


def test_a_table_that_fits_the_terminal_and_pure_json(made_up):
    done = invoke("config.yaml", "--seeds", "3", "--arms", "plain,lisa-normalised", "--arms", "hot:align.weight=5")
    assert made_up == [(arm, seed) for seed in (0, 1, 2) for arm in ("plain", "lisa-normalised", "hot")]
    assert max(map(len, done.stdout.splitlines())) <= 80
    speed = json.loads(Path("runs/compare/summary.json").read_text())["arms"][1]["speedup"]
    assert 1.9 < speed["value"] < 2.1
    cell = "{value:.2f}".format(**speed)
    for text in ("lisa-normalised", cell, "Sooner at 95%", "note: Few seeds can be paired", "runs/compare/report.html"):
        assert text in done.stdout
    again = invoke(
        "config.yaml", "--seeds", "3", "--arms", "plain,lisa-normalised", "--arms", "hot:align.weight=5", "--json"
    )
    assert len(made_up) == 9 and "all 9 runs are there" in again.stderr
    assert json.loads(again.stdout) == json.loads(Path("runs/compare/summary.json").read_text())


def test_seeds_that_never_got_there_fit_the_terminal(tmp_path):
    for seed, top in enumerate((0.4, 0.4, 0.4, 0.25)):
        make_run(tmp_path, "plain", seed, saturating(100, top))
        make_run(tmp_path, "recipe", seed, saturating(50 + seed))
    done = invoke("--report", "--out", tmp_path)
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert "recipe: plain does not reach 95% of plain's plateau in every seed: ≥ " in said
    assert "(plain never in 1 of 4; none below 1." in said
    (row,) = [line for line in done.stdout.splitlines() if line.strip().startswith("recipe ")]
    assert "≥" in row, "the arm's name is in one line"


def test_stopped_runs_are_reported_and_the_command_goes_on(made_up, monkeypatch):
    whole = comparing.train_in_process

    def stopped(file, stop):
        stop.requested = len(made_up) == 1
        return whole(file, stop)

    monkeypatch.setattr(comparing, "train_in_process", stopped)
    done = invoke("config.yaml", "--seeds", "2")
    assert done.exit_code == 130 and "The same command goes on from there" in done.stderr
    assert made_up == [("plain", 0), ("lisa", 0)] and "there is no run of seed 1" in " ".join(done.stdout.split())
    assert invoke("config.yaml", "--seeds", "2").exit_code == 0 and made_up[2:] == [("plain", 1), ("lisa", 1)]


def test_a_report_is_of_arms_as_their_folders_are_called(tmp_path):
    """Custom ones need not be written out again; what is not there is an error before anything is written."""
    for arm, half in (("plain", 100), ("recipe", 50), ("other", 70)):
        make_run(tmp_path, arm, 0, saturating(half))
    done = invoke(tmp_path, "--report", "--arms", "recipe,plain", "--baseline", "recipe", "--json")
    assert [row["arm"] for row in json.loads(done.stdout)["arms"]] == ["recipe", "plain"]
    (tmp_path / "summary.json").unlink()
    wrong = invoke(tmp_path, "--report", "--baseline", "recpie")
    assert isinstance(wrong.exception, LisaError) and "did you mean 'recipe'?" in str(wrong.exception)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.yaml", "--arms", "plain,lsia"], "unknown arm 'lsia' .did you mean 'lisa'"),
        (["config.yaml", "--arms", "lisa"], r"unknown baseline 'plain'. Choices: lisa"),
        (["config.yaml", "--seeds", "none"], "tells no seeds"),
        (["config.yaml", "--only", "plain:9"], "seed 9, which is not compared"),
        (["none.yaml"], "no configuration file 'none.yaml'"),
        (["config.yaml", "train.stps=3"], "did you mean 'steps'"),
        (["--report"], "there is no folder 'runs/compare'"),
        (["runs/a", "--report", "--only", "plain"], "--report trains nothing"),
        (["runs/a", "--report", "--arms", "lsia"], "unknown arm 'lsia' .did you mean 'lisa'"),
        (["config.yaml", "--arms", ","], "no arm was named. Choices: plain, lisa"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_trained(made_up, arguments, message):
    done = invoke(*arguments)
    assert isinstance(done.exception, LisaError) and re.search(message, str(done.exception)), done.exception
    assert made_up == [] and not Path("runs").exists()
