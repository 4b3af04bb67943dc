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
        for arm, half in (("plain", 100.0), ("aligned", 50.0), ("recipe", 60.0)):
            fidelity = 0.9 if arm == "aligned" else 0.8
            make_run(
                out, arm, seed, saturating(half + seed), settings={"data.condition": "skeleton"}, fidelity=fidelity
            )
    asked = []

    def run(command, **options):
        if command[2:5] == ["lisa", "compare", "--report"]:
            told = dict(zip(command[5::2], command[6::2], strict=True))
            place, arms = Path(told["--out"]), told["--arms"].split(",")
            write_report([place], place, arms=arms, seeds=range(int(told["--seeds"])))
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
        "aligned:lisa;align.weight=0.2",
        "recipe:plain",
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
    plain, aligned, recipe = found["rows"]
    for row in found["rows"]:
        assert row.keys() >= {*ROW, "commit", "command", "steps"} and row["seeds"] == [0, 1, 2, 3, 4]
        assert all(row[name].keys() >= {"value", "low", "high"} for name in ("onset", "final_gain", "fidelity"))
        assert row["speedup"].keys() >= {"value", "low", "high"}
        assert row["commit"] == "0000fff, abc1234-dirty" and shlex.split(row["command"]) == ["lisa", *asked[0]]
    assert aligned["speedup"]["low"] > 1.5 and plain["arm"] == "plain"
    over = aligned["over_recipe"]["steps"]["0.95"]
    assert 1.1 < over["low"] < over["high"] < 1.3 and recipe["over_recipe"] is None
    assert plain["over_recipe"]["steps"]["0.95"]["high"] < 1
    differences = [
        aligned["final_gain"]["value"] - recipe["final_gain"]["value"],
        aligned["fidelity"]["value"] - recipe["fidelity"]["value"],
    ]
    told = [aligned["over_recipe"]["final_gain"], aligned["over_recipe"]["fidelities"]["edges"]]
    assert [each["value"] for each in told] == pytest.approx(differences)
    assert differences[0] > 0 and differences[1] > 0.09
    assert aligned["decoder_r2"]["value"] == pytest.approx(0.05) and plain["decoder_r2"] is None
    assert "data.condition=skeleton train.steps=1500" in aligned["command"]


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
    (line,) = [line for line in text.splitlines() if line.startswith("| aligned |")]
    value = only["rows"][1]["speedup"]
    assert f"{value['value']:.2f}<br>[{value['low']:.2f}, {value['high']:.2f}]" in line
    over = [only["rows"][1]["over_recipe"][axis]["0.95"] for axis in ("steps", "seconds")]
    cells = [f"{each['value']:.2f}<br>[{each['low']:.2f}, {each['high']:.2f}]" for each in over]
    gain = only["rows"][1]["over_recipe"]["final_gain"]
    cells.append(f"{gain['value']:+.4f}<br>[{gain['low']:+.4f}, {gain['high']:+.4f}]")
    assert f"| {' | '.join(cells)} |" in line and "| 0.050<br>[0.050, 0.050] |" in line


def test_a_comparison_of_other_settings_has_a_name(trained, evidence, page, tmp_path, monkeypatch, capsys):
    """It stands beside the usual one; of one seed it is a lead, which the page leaves out."""
    file, asked = trained
    usual = sys.argv
    other = [*usual, "--set", "train.learning_rate=3e-4", "train.steps=1000"]
    monkeypatch.setattr(sys, "argv", other)
    for wrong, message in (
        ([], "give it a --name"),
        (["--name", "Low rate"], "small letters and digits"),
        (["--name", "x", "--set", "train.learning_rate"], "give KEY=VALUE"),
        (["--name", "x", "--set", "train.steps=many"], "train.steps as a number"),
        (["--name", "x", "--set", "data.condition=lowres"], "the condition stands before"),
    ):
        monkeypatch.setattr(sys, "argv", [*other, *wrong])
        with pytest.raises(SystemExit):
            evidence.main()
        assert message in capsys.readouterr().err
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
    leads = json.loads(by_kind["leads"].read_text("utf-8"))["rows"]
    assert [row["seeds"] for row in leads] == [[0], [0], [0]]
    assert leads[1]["over_recipe"]["steps"]["0.95"]["seeds"] == [0]
    both = page.results("evidence", file.parent)
    assert [each["file"] for each in both] == [file.name, by_kind["evidence"].name]
    text = page.section(both[1])
    assert "### tiny-sd, skeleton, low-rate\n" in text and "train.learning_rate=3e-4" in text
    assert "train.steps=1000" in text and "train.steps=1500" not in text


@pytest.fixture
def analysed(evidence, tmp_path, monkeypatch):
    """Analyses whose figures are known, every one another; `lisa analyse` is asked for what is missing."""
    import features

    runs, asked = tmp_path / "runs" / "tiny-sd-edges", []
    for arm in ("plain", "lisa", "recipe", "aligned"):
        for seed in range(5):
            (runs / arm / f"seed-{seed}").mkdir(parents=True)
            (runs / arm / f"seed-{seed}" / "summary.json").write_text("{}")

    def told(base, run):
        """The seeds differ by 0.1, alike in all arms; the arms by 0.01, 0.02 and 0.04."""
        base += 0.1 * int(run.name[-1]) + {"plain": 0, "lisa": 0.01, "recipe": 0.02, "aligned": 0.06}[run.parent.name]
        value = [{"value": base + part, "low": 0, "high": 1} for part in (0, 0.001, 0.002, 0.003)]
        r2 = {"noise": None, "condition": value[1], "caption": None, "score": value[2]}
        return {"disentanglement": value[0], "first": {}, "total": {"noise": value[3]}, "r2": r2}

    def run(command, env):
        assert command[1:4] == ["-m", "lisa", "analyse"] and command[5:] == ["--overwrite"]
        assert int(env["OMP_NUM_THREADS"]) >= 1
        asked.append(place := Path(command[4]))
        if (place / "broken").exists():
            return type("Done", (), {"returncode": 2})
        found = {
            "run": str(place),
            "model": "tiny-sd",
            "condition": "edges",
            "samples": 64,
            "levels": [500],
            "seed": 0,
            "definitions": {},
            "versions": {"lisa": "0"},
            "aligned": {"run": ["down.5"] if place.parent.name in ("lisa", "aligned") else []},
            "by_layer": [{"layer": "down.4", "run": told(9, place)}, {"layer": "down.5", "run": told(0.3, place)}],
            "overall": {"run": told(0.1, place)},
        }
        features.analysis_of(place).parent.mkdir(exist_ok=True)
        features.analysis_of(place).write_text(json.dumps(found), "utf-8")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(evidence.subprocess, "run", run)
    monkeypatch.setattr(features, "checked_out", lambda: "abc1234")
    monkeypatch.setattr(sys, "argv", ["features.py", str(runs), "--results", str(tmp_path / "results")])
    return features, asked, runs


def test_features_are_told_with_intervals_over_seeds(analysed, page):
    features, asked, runs = analysed
    features.main()
    assert len(asked) == len(set(asked)) == 20
    (file,) = (runs.parents[1] / "results").iterdir()
    found = json.loads(file.read_text("utf-8"))
    assert file.name.endswith("-features-tiny-sd-edges-cpu.json") and found["name"] is None
    assert found["seeds"] == [0, 1, 2, 3, 4] and found["command"].endswith("aligned:recipe --seeds 5")
    rows = {(row["arm"], row["against"], row["layer"]): row for row in found["rows"]}
    assert list(rows) == [(*pair.split(":"), layer) for pair in features.PAIRS for layer in ("down.5", "all")]
    lisa = rows["lisa", "plain", "down.5"]
    for place, name in enumerate(("disentanglement", "r2_condition", "r2_score", "total_noise")):
        # Between seeds the difference has no spread, each arm has.
        assert lisa[name]["difference"] == pytest.approx({"value": 0.01, "low": 0.01, "high": 0.01})
        assert lisa[name]["against"]["value"] == pytest.approx(0.5 + 0.001 * place)
        assert lisa[name]["arm"]["high"] - lisa[name]["arm"]["low"] > 0.3
    assert rows["aligned", "recipe", "all"]["r2_score"]["difference"]["value"] == pytest.approx(0.04)
    text = page.features_section(page.results("features", file.parent))
    cells = [f"{0.31 + part:.3f} / {0.3 + part:.3f}<br>+0.010 [+0.010, +0.010]" for part in (0, 0.001, 0.002, 0.003)]
    assert f"| tiny-sd | edges | lisa / plain | all | {' | '.join(cells)} |" in text
    assert page.features_section([]) == ""


def test_an_analysis_is_made_again_only_where_its_run_went_on(analysed, monkeypatch):
    features, asked, runs = analysed
    features.main()
    (runs / "lisa" / "seed-3" / "summary.json").touch()
    features.main()
    assert asked[20:] == [runs / "lisa" / "seed-3"]
    other = features.analysis_of(runs / "recipe" / "seed-1")
    other.write_text(other.read_text("utf-8").replace('"samples": 64', '"samples": 16'), "utf-8")
    with pytest.raises(SystemExit, match="samples is 16 in its analysis and 64"):
        features.main()


def test_an_analysis_that_fails_is_the_last_and_no_rows_are_written(analysed):
    features, asked, runs = analysed
    (runs / "lisa" / "seed-0" / "broken").touch()
    with pytest.raises(SystemExit, match="the same command goes on"):
        features.main()
    assert asked[-1] == runs / "lisa" / "seed-0" and len(asked) < 5 and not (runs.parents[1] / "results").exists()


def test_pairs_are_checked_before_anything_is_analysed(analysed, monkeypatch, capsys):
    features, asked, _ = analysed
    usual = sys.argv
    for pairs, message in ((["lisa"], "give ARM:AGAINST"), (["lisa:plian"], "no finished runs of plian")):
        monkeypatch.setattr(sys, "argv", [*usual, "--pairs", *pairs])
        with pytest.raises(SystemExit):
            features.main()
        assert message in capsys.readouterr().err and asked == []


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


def test_the_pages_are_up_to_date(page):
    """Every figure of the preset in the README and in the evidence's first table is of a result that is there."""
    for file, parts in page.parts().items():
        text = file.read_text("utf-8")
        for begin, made, end in parts:
            assert begin + made + end in text, f"{file.name}: python docs/make_evidence.py"


def test_a_page_without_the_marks_is_no_page(page):
    with pytest.raises(ValueError, match="no '<a>' before '<b>'"):
        page.marked_page.filled("text<b>", "<a>", "made", "<b>")
    with pytest.raises(ValueError, match="no '<a>'"):
        page.marked_page.filled("<b>text<a>", "<a>", "made", "<b>")
    assert page.marked_page.filled("1<a>2<b>3", "<a>", "made", "<b>") == "1<a>made<b>3"


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3", "tiny-svd"])
def test_every_arm_is_a_configuration(evidence, model):
    file = ROOT / "benchmarks" / "evidence" / f"{model}.yaml"
    for condition in evidence.CONDITIONS:
        base = [f"{key}={value}" for key, value in evidence.settings_of(model, condition).items()]
        for arm in parse_arms(evidence.ARMS):
            config = load_settings(TrainConfig, file, [*base, *arm.overrides])
            assert config.align.active == (arm.name not in ("plain", "recipe")), arm.name
            assert (config.side.condition_init == "auto") == (arm.name not in ("plain", "lisa", "shuffled")), arm.name
