"""The benchmark of the evidence writes rows, and docs/evidence.md is made of the rows that are there."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from lisa.build.arms import parse_arms
from lisa.compare.report import write_report
from lisa.train.config import TrainConfig
from lisa.train.settings import load_settings
from made_runs import make_run, saturating
from test_docs import ROOT

ROW = {
    "model",
    "condition",
    "arm",
    "seeds",
    "speedup",
    "onset",
    "final_gain",
    "fidelity",
    "seconds_per_step",
    "settings",
}


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evidence

    return evidence


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_evidence

    return make_evidence


@pytest.fixture
def trained(evidence, tmp_path, monkeypatch):
    """Everything but the training: runs with known curves are there already."""
    out = tmp_path / "runs" / "tiny-sd-skeleton"
    for seed in range(5):
        for arm, half in (("plain", 100.0), ("recipe", 50.0), ("start", 60.0)):
            make_run(out, arm, seed, saturating(half + seed), settings={"data.condition": "skeleton"})
    asked = []

    def run(command, **options):
        if command[2:5] == ["lisa", "compare", "--report"]:
            write_report([out], out)
        elif command[0] == "git":
            return type("Done", (), {"stdout": "abc1234\n" if "rev-parse" in command else " M src/lisa/x.py\n"})
        asked.append(command)

    monkeypatch.setattr(evidence.subprocess, "run", run)
    monkeypatch.setattr(evidence, "train", lambda command, arms, seeds, jobs: asked.append(command))
    options = [
        "--runs",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
        "--arms",
        "plain",
        "recipe:lisa;align.weight=0.2",
        "start:plain",
    ]
    monkeypatch.setattr(sys, "argv", ["evidence.py", "tiny-sd", "skeleton", *options])
    monkeypatch.chdir(ROOT)
    (out / "commits.json").write_text('["0000fff"]')
    evidence.main()
    (file,) = (tmp_path / "results").iterdir()
    return file, asked


def test_a_row_per_arm_with_the_command_that_makes_it(trained):
    file, asked = trained
    found = json.loads(file.read_text("utf-8"))
    assert file.name.endswith("-evidence-tiny-sd-skeleton-cpu.json")
    plain, recipe, start = found["rows"]
    for row in found["rows"]:
        assert row.keys() >= {*ROW, "commit", "command", "steps"} and row["seeds"] == [0, 1, 2, 3, 4]
        assert all(row[name].keys() >= {"value", "low", "high"} for name in ("onset", "final_gain", "fidelity"))
        assert row["speedup"].keys() >= {"value", "low", "high"}
        assert row["commit"] == "0000fff, abc1234-dirty" and shlex.split(row["command"]) == ["lisa", *asked[0]]
    assert recipe["speedup"]["low"] > 1.5 and plain["arm"] == "plain"
    over = recipe["over_start"]["steps"]["0.95"]
    assert 1.1 < over["low"] < over["high"] < 1.3 and start["over_start"] is None
    assert plain["over_start"]["steps"]["0.95"]["high"] < 1
    assert "data.condition=skeleton train.steps=1500" in recipe["command"]


@pytest.mark.parametrize("broken", [None, 1])
def test_seeds_are_dealt_out(evidence, monkeypatch, broken):
    """Every seed once, with all arms; what has begun ends where one fails, and no other begins."""
    begun = []

    def run(command, env):
        begun.append(command[-1])
        assert command[1:] == ["-m", "lisa", "compare", "x", "--only", command[-1]] and int(env["OMP_NUM_THREADS"]) >= 1
        return type("Done", (), {"returncode": 130 if command[-1] == f"plain:{broken},b:{broken}" else 0})

    monkeypatch.setattr(evidence.subprocess, "run", run)
    if broken is None:
        evidence.train(["compare", "x"], ["plain", "b:lisa"], [0, 1, 2, 3, 4], jobs=2)
        assert sorted(begun) == [f"plain:{seed},b:{seed}" for seed in range(5)]
    else:
        with pytest.raises(SystemExit, match="the same command goes on"):
            evidence.train(["compare", "x"], ["plain", "b:lisa"], [0, 1, 2, 3, 4], jobs=1)
        assert begun == ["plain:0,b:0", "plain:1,b:1"]


def test_only_a_commit_that_trains_is_told(trained, evidence, tmp_path, monkeypatch):
    """Not one that writes the rows of what is there already; and none is made up."""
    file, asked = trained
    out = tmp_path / "runs" / "tiny-sd-skeleton"

    def trainings():
        return [command[0] for command in asked].count("compare")

    assert trainings() == 1, "runs of fewer steps are trained on"
    monkeypatch.setitem(evidence.CONDITIONS, "skeleton", (1000, 50))
    evidence.main()
    assert trainings() == 1 and evidence.commits(out) == ["0000fff", "abc1234-dirty"]
    (out / "commits.json").unlink()
    with pytest.raises(SystemExit):
        evidence.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--commit", "1234567"])
    evidence.main()
    assert {row["commit"] for row in json.loads(file.read_text("utf-8"))["rows"]} == {"1234567"}


def test_the_page_has_the_newest_row_of_each(trained, page):
    file, _ = trained
    older = file.with_name(f"2020-01-01-{file.name[11:]}")
    older.write_text(file.read_text("utf-8").replace("abc1234", "0000000").replace("0000fff", "0000000"), "utf-8")
    (only,) = page.results("evidence", file.parent)
    text = page.section(only)
    assert "### tiny-sd, skeleton" in text and "abc1234" in text and "0000000" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| recipe |")]
    value = only["rows"][1]["speedup"]
    assert f"{value['value']:.2f}<br>[{value['low']:.2f}, {value['high']:.2f}]" in line
    over = [only["rows"][1]["over_start"][axis]["0.95"] for axis in ("steps", "seconds")]
    cells = [f"{each['value']:.2f}<br>[{each['low']:.2f}, {each['high']:.2f}]" for each in over]
    assert f"| {' | '.join(cells)} |" in line


def test_a_comparison_of_other_settings_has_a_name(trained, evidence, page, tmp_path, monkeypatch, capsys):
    """It stands beside the usual one; of one seed it is a lead, which the page leaves out."""
    file, asked = trained
    usual = sys.argv
    other = [*usual, "--set", "train.learning_rate=3e-4", "train.steps=1000"]
    monkeypatch.setattr(sys, "argv", other)
    with pytest.raises(SystemExit):
        evidence.main()
    assert "give it a --name" in capsys.readouterr().err
    shutil.copytree(tmp_path / "runs" / "tiny-sd-skeleton", tmp_path / "runs" / "tiny-sd-skeleton-low-rate")
    for seeds in ("5", "1"):
        monkeypatch.setattr(sys, "argv", [*other, "--name", "low-rate", "--seeds", seeds])
        evidence.main()
    assert [command[0] for command in asked].count("compare") == 1, "all has its 1,000 steps already"
    by_kind = {found.name.split("-")[3]: found for found in file.parent.iterdir() if found != file}
    assert {found.name[11:] for found in by_kind.values()} == {
        "evidence-tiny-sd-skeleton-low-rate-cpu.json",
        "leads-tiny-sd-skeleton-low-rate-cpu.json",
    }
    both = page.results("evidence", file.parent)
    assert [each["file"] for each in both] == [file.name, by_kind["evidence"].name]
    text = page.section(both[1])
    assert "### tiny-sd, skeleton, low-rate\n" in text and "train.learning_rate=3e-4" in text
    assert "train.steps=1000" in text and "train.steps=1500" not in text


@pytest.fixture
def analysed(evidence, tmp_path, monkeypatch):
    """Analyses whose figures are known: of arm and seed; `lisa analyse` is asked for what is missing."""
    import features

    levels = {"plain": 0.3, "lisa": 0.4, "start": 0.5, "recipe": 0.5}

    def write(run):
        seed = int(run.name.removeprefix("seed-"))
        value = {"value": levels[run.parent.name] + 0.1 * seed, "low": 0, "high": 1}
        figures = {"disentanglement": value, "r2": {"condition": value, "score": value}, "total": {"noise": value}}
        aligned = run.parent.name in ("lisa", "recipe")
        found = {
            "model": "tiny-sd",
            "condition": "edges",
            "samples": 64,
            "levels": [167, 500, 833],
            "definitions": {},
            "versions": {},
            "aligned": {"run": ["down.5"] if aligned else []},
            "by_layer": [{"layer": "down.4", "run": {}}, {"layer": "down.5", "run": figures}],
            "overall": {"run": figures},
        }
        features.analysis_of(run).parent.mkdir(parents=True)
        features.analysis_of(run).write_text(json.dumps(found), "utf-8")

    asked = []

    def run(command, env):
        assert command[1:4] == ["-m", "lisa", "analyse"] and int(env["OMP_NUM_THREADS"]) >= 1
        asked.append(Path(command[4]))
        broken = asked[-1].parent.name == "broken"
        return type("Done", (), {"returncode": 1 if broken else write(asked[-1]) or 0})

    monkeypatch.setattr(features.subprocess, "run", run)
    monkeypatch.setattr(features, "checked_out", lambda: "abc1234")
    monkeypatch.setattr(sys, "argv", ["features.py", str(tmp_path / "runs"), "--results", str(tmp_path / "results")])
    return features, asked, tmp_path


def test_features_are_told_with_intervals_over_seeds(analysed, page):
    features, asked, folder = analysed
    features.main()
    assert len(asked) == len(set(asked)) == 20
    (file,) = (folder / "results").iterdir()
    found = json.loads(file.read_text("utf-8"))
    assert file.name.endswith("-features-tiny-sd-edges-cpu.json") and found["seeds"] == [0, 1, 2, 3, 4]
    rows = {(row["arm"], row["against"], row["layer"]): row for row in found["rows"]}
    assert list(rows) == [(*pair.split(":"), layer) for pair in features.PAIRS for layer in ("down.5", "all")]
    lisa = rows["lisa", "plain", "down.5"]["disentanglement"]
    # The seeds differ by 0.1, alike in both arms: the difference has no spread, each arm has.
    assert lisa["difference"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert lisa["arm"]["value"] == pytest.approx(0.6) and lisa["arm"]["high"] - lisa["arm"]["low"] > 0.3
    assert rows["recipe", "start", "all"]["total_noise"]["difference"]["value"] == pytest.approx(0)
    features.main()
    assert len(asked) == 20, "an analysis that is there is not made again"
    text = page.features_section(page.results("features", file.parent))
    assert "| tiny-sd | edges | lisa / plain | down.5 | 0.600 / 0.500<br>+0.100 [+0.100, +0.100] |" in text
    assert page.features_section([]) == ""


def test_a_failed_analysis_writes_no_rows(analysed, monkeypatch):
    features, _, folder = analysed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--pairs", "broken:plain"])
    with pytest.raises(SystemExit, match="the same command goes on"):
        features.main()
    assert not (folder / "results").exists()


@pytest.mark.parametrize("start", ["default", "lsuv"])
@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_what_of_strokes_comes_in_is_as_recorded(evidence, model, start):
    import condition_signal

    (file,) = ROOT.glob("benchmarks/results/*-condition-signal.json")
    (recorded,) = [
        row
        for row in json.loads(file.read_text("utf-8"))["rows"]
        if (row["model"], row["condition"], row["start"]) == (model, "skeleton", start)
    ]
    found = condition_signal.measure(model, "skeleton", start)
    assert found.keys() == recorded.keys() and found["between_conditions"] == pytest.approx(
        recorded["between_conditions"], rel=0.1
    )


def test_the_page_is_up_to_date(page):
    text = page.TARGET.read_text("utf-8")
    assert page.BEGIN in text and page.BEGIN + page.tables() + page.END in text


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3", "tiny-svd"])
def test_every_arm_is_a_configuration(evidence, model):
    file = ROOT / "benchmarks" / "evidence" / f"{model}.yaml"
    for condition in evidence.CONDITIONS:
        base = [f"{key}={value}" for key, value in evidence.settings_of(model, condition).items()]
        for arm in parse_arms(evidence.ARMS):
            config = load_settings(TrainConfig, file, [*base, *arm.overrides])
            assert config.align.active == (arm.name not in ("plain", "start")), arm.name
            assert (config.side.condition_init == "auto") == (arm.name not in ("plain", "lisa")), arm.name
