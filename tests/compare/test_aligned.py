"""Run folders as data: what is read, what may be compared, what is merged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.compare.aligned import read_comparison, shared_by_arms
from lisa.compare.runs import read_run
from made_runs import make_run, saturating

CURVE = saturating(100)
#: Complete but for one metric.
METRIC = (
    '{"steps": 1000, "fidelities": {"edges": {"metric": "m", "unit": "", "protocol": "p", "samples": 1, '
    '"with": {"value": 1}, "without": {"value": 0}, "metrics": {"psnr": METRIC}}}}'
)


def test_a_run_as_its_folder_tells_it(tmp_path):
    run = read_run(make_run(tmp_path, "lisa", 3, CURVE, seconds_per_step=0.5, judged=[0, 500]), "lisa", 3)
    assert (run.arm, run.seed, run.state, run.step) == ("lisa", 3, "finished", 1000)
    assert run.gain.steps.tolist() == list(range(0, 1001, 20)) and run.gain.values[5] == pytest.approx(0.2)
    assert run.seconds([0, 30, 1000]) == pytest.approx([0, 15, 500])  # training time alone, from zero
    assert run.seconds_per_step == pytest.approx(0.5)
    assert run.fidelity["edges"].steps.tolist() == [0, 500] and run.settings["align.weight"] == 0.2


def test_what_was_given_up_by_resuming_does_not_count(tmp_path):
    path = make_run(tmp_path, "lisa", 0, CURVE, until=200)
    with (path / "events.jsonl").open("a") as file:
        for event in (
            {"step": 100, "kind": "resumed", "checkpoint": "step-000100"},
            {"step": 120, "kind": "held_out", "control_gain": {"value": 0.9}, "gap": {"value": 0.9}},
        ):
            file.write(json.dumps(event) + "\n")
    run = read_run(path, "lisa", 0)
    assert run.gain.steps[-1] == 120 and run.gain.values[-1] == 0.9 and run.clock.steps[-1] == 100
    assert (run.state, run.counts) == ("unfinished", False)


def test_a_run_that_diverged_went_as_far_as_it_could(tmp_path):
    run = read_run(make_run(tmp_path, "lisa", 0, CURVE, until=200, diverged=True), "lisa", 0)
    assert (run.state, run.counts) == ("diverged", True)


def test_runs_of_several_machines_are_one_comparison(tmp_path):
    make_run(tmp_path / "a", "plain", 0, CURVE)
    make_run(tmp_path / "a", "lisa", 0, CURVE, until=400)  # begun here,
    make_run(tmp_path / "b", "lisa", 0, CURVE)  # finished there
    make_run(tmp_path / "b", "another", 1, CURVE)
    for folders in (["a", "b"], ["b", "a"]):
        merged = read_comparison([tmp_path / name for name in folders])
        assert merged.arms == ("plain", "another", "lisa") and merged.seeds == (0, 1)
        assert set(merged.of("lisa")) == {0} and merged.of("plain").keys() == {0}
    wanted = read_comparison([tmp_path / "b"], arms=["lisa", "plain"], seeds=[0, 4], baseline="lisa")
    assert wanted.arms == ("lisa", "plain") and wanted.seeds == (0, 4) and wanted.of("plain") == {}
    make_run(tmp_path / "c", "lisa", 0, CURVE)
    with pytest.raises(LisaError, match="same arm and seed, both finished"):
        read_comparison([tmp_path / "b", tmp_path / "c"])


@pytest.mark.parametrize(
    ("setting", "value", "same"),
    [
        ("data.condition", "depth", False),
        ("data.held_out", 32, False),
        ("train.steps", 990, False),  # a run cannot go on from there: readings are every 20 steps
        ("log.held_out_levels", 4, False),
        ("log.fidelity_samples", 4, False),
        ("log.fidelity_every", 100, False),
        ("sample.steps", 4, False),
        ("model.path", "other", False),
        ("model.log_sigma", [0.0, 1.0], False),
        ("data.cache_dir", "elsewhere", True),
        ("train.learning_rate", 1e-4, True),
        ("side.depth", 3, True),
    ],
)
def test_arms_may_differ_in_what_is_compared_and_not_in_what_is_measured(tmp_path, setting, value, same):
    make_run(tmp_path, "plain", 0, CURVE)
    base = {"side": {}, **json.loads(json.dumps(made_settings()))}
    section, _, key = setting.rpartition(".")
    base[section][key] = value
    make_run(tmp_path, "lisa", 0, CURVE, base=base)
    if same:
        assert read_comparison([tmp_path]).arms == ("plain", "lisa")
    else:
        with pytest.raises(LisaError, match=f"cannot be compared: {setting} is"):
            read_comparison([tmp_path])


def test_runs_of_fewer_steps_are_to_go_on(tmp_path):
    """Where they can: until they have as many steps as the others, they are unfinished, and have no figures."""
    make_run(tmp_path / "a", "plain", 0, CURVE)
    make_run(tmp_path / "a", "lisa", 0, CURVE, steps=900)
    make_run(tmp_path / "a", "lisa", 1, CURVE, steps=900, until=500, diverged=True)
    found = read_comparison([tmp_path / "a"]).runs
    assert (found["plain", 0].state, found["lisa", 0].state) == ("finished", "unfinished")
    assert found["lisa", 0].summary == {} and found["lisa", 0].settings["train.steps"] == 1000
    assert (found["lisa", 1].state, found["lisa", 1].settings["train.steps"]) == ("diverged", 1000)
    cosine = {"train.lr_schedule": "cosine"}
    make_run(tmp_path / "b", "plain", 0, CURVE, settings=cosine)
    make_run(tmp_path / "b", "lisa", 0, CURVE, steps=900, settings=cosine)
    with pytest.raises(LisaError, match=r"cannot be compared: train\.steps is 1000 in the one and 900"):
        read_comparison([tmp_path / "b"])


def made_settings():
    from made_runs import SETTINGS

    settings = json.loads(json.dumps(SETTINGS))
    settings["log"]["held_out_every"] = 20
    return settings


def test_a_setting_that_only_one_version_knows_keeps_no_runs_apart(tmp_path):
    make_run(tmp_path, "plain", 0, CURVE, settings={"data.newer": 1})
    make_run(tmp_path, "plain", 1, CURVE)
    make_run(tmp_path, "lisa", 0, CURVE, settings={"align.newer": 1})
    make_run(tmp_path, "lisa", 1, CURVE)
    assert len(read_comparison([tmp_path]).runs) == 4


def test_which_of_two_runs_counts_is_not_a_matter_of_order(tmp_path):
    make_run(tmp_path / "a", "lisa", 0, CURVE, until=400)
    make_run(tmp_path / "b", "lisa", 0, CURVE, until=200)
    make_run(tmp_path / "c", "lisa", 0, CURVE, until=100, diverged=True)
    make_run(tmp_path / "d", "lisa", 0, CURVE)

    def merged(*names):
        return read_comparison([tmp_path / name for name in names]).runs["lisa", 0].path.parents[1].name

    assert merged("a", "b") == merged("b", "a") == "a"  # the one that is further
    assert merged("a", "c") == merged("c", "a") == "c"  # one that diverged will go no further
    for both in (("c", "d"), ("d", "c")):
        with pytest.raises(LisaError, match=r"same arm and seed, one (diverged, one finished|finished, one diverged)"):
            merged(*both)


def test_seeds_of_an_arm_have_the_same_settings(tmp_path):
    make_run(tmp_path, "lisa", 0, CURVE)
    make_run(tmp_path, "lisa", 1, CURVE, settings={"align.weight": 5})
    with pytest.raises(LisaError, match=r"align.weight is 0.2 in the one and 5 in the other"):
        read_comparison([tmp_path])


def test_what_cannot_be_read_is_one_message(tmp_path):
    with pytest.raises(LisaError, match="there is no folder"):
        read_comparison([tmp_path / "none"])
    with pytest.raises(LisaError, match="there is no run in"):
        read_comparison([tmp_path])
    path = make_run(tmp_path, "lisa", 0, CURVE)
    with pytest.raises(LisaError, match="there is no run of the arms plain"):
        read_comparison([tmp_path], arms=["plain"])
    path.rename(path.with_name("seed-7"))
    with pytest.raises(LisaError, match="was trained with seed 0"):
        read_comparison([tmp_path])
    (path.with_name("seed-7") / "config.yaml").write_text("- a\n- list\n")
    with pytest.raises(LisaError, match="is not the configuration of a run"):
        read_comparison([tmp_path])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("events.jsonl", '{"step": null, "kind": "held_out"}', "TypeError"),
        ("events.jsonl", '{"step": 1, "kind": "train", "seconds": "many"}', "ValueError"),
        ("config.yaml", "seed: 0\ndata: {condition: edges}\ntrain: {steps: many}", "many"),
        ("config.yaml", "seed: 0\ndata: {condition: null}", "data.condition"),
        ("events.jsonl", '{"step": Infinity, "kind": "held_out"}', "OverflowError"),
        ("events.jsonl", "[" * 100_000, "RecursionError"),
        ("summary.json", '{"steps": 1000, "fidelities": {"edges": {"metric": "edge_f1", "with": {}}}}', "without"),
        ("summary.json", '{"steps": 1000, "fidelities": ["edges"]}', "fidelities in summary.json is"),
        ("summary.json", '{"steps": 1000, "control_gain": 0.3}', "control_gain in summary.json is 0.3"),
        ("summary.json", '{"steps": 1000, "versions": "0.1"}', "versions in summary.json"),
        ("summary.json", '{"steps": 1000, "notes": 5}', "notes in summary.json"),
        ("summary.json", METRIC.replace("METRIC", '{"with": {"value": 1}, "unit": ""}'), "psnr of edges"),
        ("summary.json", METRIC.replace("METRIC", "1"), "TypeError"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, file, text, message):
    path = make_run(tmp_path, "lisa", 0, CURVE)
    (path / file).write_text(text + "\n")
    with pytest.raises(LisaError, match=r"is damaged|tells no") as raised:
        read_comparison([tmp_path])
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_a_summary_that_is_not_used_is_not_judged(tmp_path):
    """Of a run that is to go on: what its checkpoint needs is elsewhere."""
    path = make_run(tmp_path, "lisa", 0, CURVE)
    (path / "summary.json").write_text('{"steps": 500, "fidelities": {"edges": {}}}')
    run = read_run(path, "lisa", 0)
    assert (run.state, run.summary) == ("unfinished", {})


def test_a_baseline_that_is_no_arm_is_named(tmp_path):
    """But for plain, which may be trained later."""
    make_run(tmp_path, "lisa", 0, CURVE)
    make_run(tmp_path, "recipe", 0, CURVE)
    assert read_comparison([tmp_path]).of("plain") == {}
    assert read_comparison([tmp_path], arms=["lisa", "plain"]).of("plain") == {}
    with pytest.raises(LisaError, match=r"unknown baseline 'plain'. Choices: lisa, recipe"):
        read_comparison([tmp_path], arms=["lisa", "recipe"])
    for arms in (None, ["lisa", "recipe"]):
        with pytest.raises(LisaError, match=r"unknown baseline 'recpie' .did you mean 'recipe'"):
            read_comparison([tmp_path], baseline="recpie", arms=arms)


def test_settings_of_the_place_are_no_settings_of_the_measure():
    assert shared_by_arms("data.size") and shared_by_arms("train.steps") and shared_by_arms("data")
    assert not shared_by_arms("data.cache_dir") and not shared_by_arms("train.batch_size")
    assert not shared_by_arms("database")


def test_one_value_per_step(tmp_path):
    """The reading at the last step is written twice where a finished run is resumed."""
    path = make_run(tmp_path, "lisa", 0, CURVE)
    with (path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1000, "kind": "held_out", "control_gain": {"value": 0.5}, "gap": {}}) + "\n")
    run = read_run(path, "lisa", 0)
    assert np.all(np.diff(run.gain.steps) > 0) and run.gain.values[-1] == 0.5
