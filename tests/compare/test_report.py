"""The figures of a comparison on made-up runs whose answers are known, and the files of its report."""

from __future__ import annotations

import json
import re

import pytest

from lisa.common.errors import LisaError
from lisa.compare import wording
from lisa.compare.aligned import read_comparison
from lisa.compare.report import write_report
from lisa.compare.results import summarise
from made_runs import make_run, saturating
from reported import Page, rows, three_arms


def test_the_figures_are_those_of_the_curves(reported):
    _, summary = reported
    arms = rows(summary)
    assert list(arms) == ["plain", "lisa", "shuffled"] and summary["plateau"]["reached"] and summary["notes"] == []
    assert summary["plateau"]["level"] == pytest.approx(0.4, rel=0.01)
    assert arms["lisa"]["speedup"] == arms["lisa"]["speedups"]["steps"]["0.95"]
    for share in ("0.95", "0.8", "0.5"):
        steps, seconds = (arms["lisa"]["speedups"][axis][share] for axis in ("steps", "seconds"))
        assert steps["value"] == pytest.approx(2, rel=0.02) and steps["low"] < 2.01 and steps["high"] > 1.97
        assert seconds["value"] == pytest.approx(steps["value"] / 1.25)  # each step takes longer
        assert arms["shuffled"]["speedups"]["steps"][share]["value"] == pytest.approx(1)
        assert arms["plain"]["speedups"]["steps"][share]["low"] == 1
    assert arms["lisa"]["against_baseline"]["seconds_per_step"]["value"] == pytest.approx(1.25)
    assert arms["lisa"]["fidelity"]["value"] == pytest.approx(0.9)
    assert arms["lisa"]["against_baseline"]["fidelities"]["edges"]["value"] == pytest.approx(0.1)
    beside = arms["lisa"]["fidelity"]["metrics"]["flicker"]
    assert (beside["value"], beside["without"], beside["unit"], beside["higher_is_better"]) == (0.25, 0.9, "F1", False)
    assert arms["lisa"]["peak_memory_mb"]["value"] == 1000 and arms["lisa"]["settings"] == {"align.enabled": True}
    assert arms["lisa"]["decoder_r2"]["value"] == 0.05 and arms["lisa"]["per_seed"]["0"]["decoder_r2"] == 0.05
    assert arms["plain"]["decoder_r2"] is None and arms["plain"]["per_seed"]["0"]["decoder_r2"] is None
    # The gap is at 10% of 0.4 where 1 - 2^(-s / half) is 0.1: at 0.152 half, read every 10 steps.
    assert arms["plain"]["onset"]["per_seed"] == [20, 20, 20, 20, 20]
    needed = arms["plain"]["per_seed"]["0"]["steps_to"]["0.5"]
    assert needed == pytest.approx(80, rel=0.02)
    assert arms["plain"]["per_seed"]["0"]["seconds_to"]["0.5"] == pytest.approx(0.2 * needed)
    assert {"model", "condition", "arm", "seeds", "speedup", "onset", "final_gain", "fidelity", "seconds_per_step",
            "settings"} <= arms["lisa"].keys()  # fmt: skip


def test_the_page_needs_no_other_file(reported):
    out, _ = reported
    text = (out / "report.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.links == [] and "@import" not in text and "url(http" not in text
    assert page.tags.count("svg") == 8  # gain, gap, fidelity over steps and time; speed-ups in both
    assert 'name="viewport"' in text and "Sooner at 95%" in text
    assert "{{" not in text and "None" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S)


@pytest.mark.parametrize(
    ("in_steps", "in_time", "told"),
    [
        (
            (1.2, 1.1, 1.3),
            (1.1, 1.05, 1.2),
            "Sooner at 95% of plain's plateau: speed-up 1.20 [1.10, 1.30] in steps, 1.10 ",
        ),
        (
            (1.2, 1.1, 1.3),
            (0.8, 0.7, 0.9),
            "Sooner at 95% of plain's plateau in steps, later in training time: speed-up 1.2",
        ),
        (
            (1.2, 1.1, 1.3),
            (1.0, 0.9, 1.1),
            "Sooner at 95% of plain's plateau in steps, no difference that these seeds ",
        ),
        (
            (1.0, 0.9, 1.1),
            (1.0, 0.9, 1.1),
            "No difference at 95% of plain's plateau that these seeds can tell: speed-up 1",
        ),
        (
            (1.0, 0.9, 1.1),
            (0.8, 0.7, 0.9),
            "At 95% of plain's plateau no difference that these seeds can tell in steps, ",
        ),
        (
            (0.9, 0.8, 0.95),
            (0.7, 0.6, 0.8),
            "Later at 95% of plain's plateau: speed-up 0.90 [0.80, 0.95] in steps, 0.70 ",
        ),
        ((1.2, None, None), (1.1, None, None), "One seed tells no interval. To 95% of plain's plateau: speed-up 1.20"),
    ],
)
def test_the_verdict_is_of_steps_and_of_time(in_steps, in_time, told):
    names = ("value", "low", "high")
    axes = {
        axis: {
            "0.95": {
                **dict(zip(names, found, strict=True)),
                "seeds": [0] if found[1] is None else [0, 1, 2],
                "never": [],
                "baseline_never": [],
                "bound": "",
            }
        }
        for axis, found in (("steps", in_steps), ("seconds", in_time))
    }
    row = {"speedups": axes, "against_baseline": {"final_gain": None}}
    said = wording.verdict(row, {"baseline": "plain", "levels": [0.95]})
    assert said.startswith(told) and said.endswith(" in training time."), said


def test_what_else_was_judged_stands_beneath(reported):
    """The fidelity's own metric is not told twice."""
    for name in ("report.html", "report.md"):
        text = (reported[0] / name).read_text("utf-8")
        assert text.count("flicker (lower is better, F1)") == 1 and "edge_f1 (higher" not in text, name
    assert "| lisa | 0.250 [0.250, 0.250] |\n" in text


def test_the_same_runs_give_the_same_report(reported, tmp_path):
    out, _ = reported
    write_report([out], tmp_path)
    for name in ("summary.json", "report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_markdown_has_the_same_figures(reported):
    out, summary = reported
    text = (out / "report.md").read_text("utf-8")
    value = rows(summary)["lisa"]["speedup"]
    assert "{value:.2f} [{low:.2f}, {high:.2f}]".format(**value) in text
    assert (out / "curves.png").is_file() and "(curves.png)" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1 and "|---|" in table.splitlines()[1]


def notes(out):
    return " ".join(summarise(read_comparison([out]))["notes"])


def test_what_is_missing_is_said(tmp_path):
    three_arms(tmp_path, seeds=[0, 1])
    make_run(tmp_path, "late", 0, saturating(100), every=10, until=300)
    make_run(tmp_path, "wild", 0, saturating(100), every=10, until=300, diverged=True)
    said = " ".join(
        write_report([tmp_path], tmp_path, arms=["plain", "late", "wild", "planned"], seeds=[0, 1])["notes"]
    )
    assert "Few seeds can be paired with plain: none of late, 1 of wild, none of planned." in said
    assert "late: seed 0 is not finished (step 300 of 1000) and is left out" in said
    assert "late: there is no run of seed 1" in said and "planned: there is no run of seed 0, 1" in said
    assert "wild: seed 0 diverged at step 300" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    arms = rows(summary)
    assert arms["late"]["speedup"] is None and arms["planned"]["final_gain"] is None
    wild = arms["wild"]["speedups"]["steps"]
    assert wild["0.95"]["never"] == [0] and wild["0.95"]["bound"] == "at most" and wild["0.5"]["never"] == []
    assert arms["wild"]["final_gain"] is None  # it has no end
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "It never reaches 95% of plain" in page and "never" in (tmp_path / "report.md").read_text()


def test_a_baseline_that_has_no_plateau_is_said(tmp_path):
    make_run(tmp_path / "rising", "plain", 0, lambda step: step / 5000)
    assert "has not reached its plateau: in its last fifth it gains 22.2%" in notes(tmp_path / "rising")
    make_run(tmp_path / "falling", "plain", 0, lambda step: 1 - step / 4000)
    assert "plain falls at its end: in its last fifth it loses 6." in notes(tmp_path / "falling")
    make_run(tmp_path / "nothing", "plain", 0, lambda step: -step / 1000)
    assert "plain gains nothing" in notes(tmp_path / "nothing")
    make_run(tmp_path / "none", "lisa", 0, saturating(100))
    assert "There is no finished run of plain" in notes(tmp_path / "none")
    make_run(tmp_path / "begun", "plain", 0, saturating(100), until=0)
    assert "There is no finished run of plain" in notes(tmp_path / "begun")
    make_run(tmp_path / "cosine", "plain", 0, saturating(100), settings={"train.lr_schedule": "cosine"})
    assert "learning rate is annealed (train.lr_schedule=cosine)" in notes(tmp_path / "cosine")


def test_seeds_are_counted_in_pairs_with_the_baseline(tmp_path):
    for seed in range(5):
        make_run(tmp_path, "plain", seed, saturating(100))
        make_run(tmp_path, "all", seed, saturating(50))
        make_run(tmp_path, "apart", seed + 3, saturating(50))
    assert "can be paired with plain: 2 of apart." in notes(tmp_path)


def test_one_seed_has_no_interval_of_the_time_per_step(tmp_path):
    make_run(tmp_path, "plain", 0, saturating(100), seconds_per_step=0.2)
    make_run(tmp_path, "lisa", 0, saturating(50), seconds_per_step=0.25)
    ratio = rows(summarise(read_comparison([tmp_path])))["lisa"]["against_baseline"]["seconds_per_step"]
    assert ratio == {"value": pytest.approx(1.25), "low": None, "high": None}


def test_memory_is_the_accelerators_where_there_is_one(tmp_path):
    for arm, peaks in (("plain", {"peak_device_mb": 300.0}), ("lisa", {"peak_device_mb": None})):
        summary = make_run(tmp_path, arm, 0, saturating(50)) / "summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | peaks))
    arms = rows(summarise(read_comparison([tmp_path])))
    assert [arms[name]["peak_memory_mb"]["value"] for name in ("plain", "lisa")] == [300, 1000]


def test_notes_of_the_trainings_are_passed_on(tmp_path):
    for seed, found in ((0, ["its decoder reads nothing"]), (1, []), (2, ["its decoder reads nothing"])):
        make_run(tmp_path, "plain", seed, saturating(100))
        summary = make_run(tmp_path, "lisa", seed, saturating(50)) / "summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"notes": found}))
    assert "lisa, seed 0, 2: its decoder reads nothing." in notes(tmp_path)


def test_a_metric_that_no_run_has_a_figure_for_is_left_out(tmp_path):
    summary = make_run(tmp_path, "plain", 0, saturating(100)) / "summary.json"
    raw = json.loads(summary.read_text())
    raw["fidelities"]["edges"]["metrics"]["flicker"]["with"]["value"] = None
    summary.write_text(json.dumps(raw))
    assert list(write_report([tmp_path], tmp_path)["arms"][0]["fidelity"]["metrics"]) == ["edge_f1"]


def test_averaged_weights_are_said(tmp_path):
    make_run(tmp_path, "plain", 0, saturating(100), settings={"train.ema": None})
    assert "train.ema" not in notes(tmp_path)
    make_run(tmp_path, "lisa", 0, saturating(100), settings={"train.ema": 0.99})
    assert "Weights are averaged (train.ema) in lisa: curves of gain and gap" in notes(tmp_path)


def test_nothing_is_concluded_from_the_interval_of_two_seeds(tmp_path):
    three_arms(tmp_path, seeds=[0, 1])
    summary = summarise(read_comparison([tmp_path]))
    row = rows(summary)["lisa"]
    assert row["speedup"]["low"] > 1, "there is one, and it would say sooner"
    told = wording.verdict(row, summary)
    assert told.startswith("2 seeds tell no interval. To 95% of plain's plateau: speed-up ")
    assert f"{row['speedup']['value']:.2f} (2 seeds: no interval) in steps" in told


def test_another_arm_may_be_the_baseline(tmp_path):
    three_arms(tmp_path, seeds=[0, 1])
    summary = summarise(read_comparison([tmp_path], baseline="lisa"))
    assert [row["arm"] for row in summary["arms"]] == ["lisa", "plain", "shuffled"]
    assert rows(summary)["plain"]["speedup"]["value"] == pytest.approx(0.5, rel=0.02)


def test_names_are_text_and_not_markup(tmp_path):
    make_run(tmp_path, "plain", 0, saturating(100), settings={"model.path": "<b>x</b>&"})
    write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>x</b>" not in text and "&lt;b&gt;x" in text


def test_nothing_is_written_for_runs_that_cannot_be_compared(tmp_path):
    make_run(tmp_path, "plain", 0, saturating(100))
    make_run(tmp_path, "lisa", 0, saturating(100), settings={"data.condition": "depth"})
    with pytest.raises(LisaError, match=r"data\.condition"):
        write_report([tmp_path], tmp_path)
    assert not (tmp_path / "report.html").exists()
