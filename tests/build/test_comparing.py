"""Arms and seeds trained for a comparison: the same inputs, resumable, mergeable, and everything checked before."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal

import pytest
import yaml

import lisa
import runs
from lisa.build import comparing
from lisa.build.arms import parse_arms
from lisa.build.comparing import make_plan, parse_only, parse_seeds, train_in_process, train_runs
from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.compare.aligned import read_comparison
from lisa.compare.report import write_report
from lisa.compare.results import summarise
from lisa.pairs import Pair
from lisa.train.interrupt import StopRequest


def plan(out, model, arms="plain,lisa", seeds="2", **changes):
    changes = {"train__steps": 3, "log__held_out_every": 1, "log__samples_every": 3} | changes
    raw = runs.settings(out, model, **changes)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(raw))
    return make_plan(file, [], parse_arms([arms]), parse_seeds(seeds), out)


def here(file, stop):
    """``lisa train`` in this process."""
    return 0 if lisa.train(str(file), quiet=True) is not None else 130


def never(file, stop):
    raise AssertionError("a training began")


def digest(tensors):
    return hashlib.sha256(b"".join(each.detach().contiguous().numpy().tobytes() for each in tensors)).hexdigest()


@pytest.fixture(scope="module")
def compared(sd_small, tmp_path_factory):
    """Two arms, two seeds; and by run what every pass saw while training and while reading, and the first weights."""
    out, seen, current = tmp_path_factory.mktemp("compare") / "out", {}, {}
    predict, predictions = Pair.predict, Pair.predictions

    def training(self, inputs, **options):
        run = current["run"]
        if "weights" not in seen[run]:
            seen[run]["weights"] = digest(self.side.module.parameters())
        record("training", inputs, [inputs.condition])
        return predict(self, inputs, **options)

    def reading(self, inputs, conditions):
        if not self.side.module.training:
            record("reading", inputs, conditions)
        return predictions(self, inputs, conditions)

    def record(kind, inputs, conditions):
        tensors = [inputs.x_t, inputs.t, *conditions, *inputs.context.values()]
        seen[current["run"]].setdefault(kind, []).append(digest(tensors))

    def launch(file, stop):
        config = yaml.safe_load(file.read_text())
        current["run"] = (config["align"]["enabled"], config["seed"])
        seen[current["run"]] = {}
        return here(file, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pair, "predict", training)
        patch.setattr(Pair, "predictions", reading)
        lines = []
        assert train_runs(plan(out, sd_small), say=lines.append, launch=launch)
    return out, seen, lines


def test_arms_of_a_seed_see_the_same(compared):
    """Samples, noise, noise levels, dropped captions and initial weights; and the held-out set is that of all runs."""
    _, seen, _ = compared
    assert len(seen) == 4
    for seed in (0, 1):
        plain, aligned = seen[False, seed], seen[True, seed]
        assert plain == aligned and len(plain["training"]) == 3
    assert (
        seen[True, 0]["training"] != seen[True, 1]["training"] and seen[True, 0]["weights"] != seen[True, 1]["weights"]
    )
    assert len({tuple(each["reading"]) for each in seen.values()}) == 1


def test_every_run_is_an_ordinary_run(compared):
    out, _, lines = compared
    first = {}
    for arm in ("plain", "lisa"):
        for seed in (0, 1):
            run = out / arm / f"seed-{seed}"
            summary = json.loads((run / "summary.json").read_text())
            assert (summary["arm"], summary["seed"], summary["steps"]) == (arm, seed, 3)
            assert not (run / "cache").exists() and (run / "side_network/config.json").is_file()
            first[arm, seed] = runs.events(run, "held_out")[0]["control_gain"]
    assert len({json.dumps(reading) for reading in first.values()}) == 1
    assert (out / "cache").is_dir()
    # Seed by seed, so that a machine that slows down does so for both arms.
    assert [line.partition(":")[0] for line in lines] == [
        "[1/4] plain, seed 0", "[2/4] lisa, seed 0", "[3/4] plain, seed 1", "[4/4] lisa, seed 1"
    ]  # fmt: skip


def test_the_report_of_real_runs(compared, tmp_path):
    """Every part that made-up runs have is there of trained ones, too; and it is the same each time."""
    out, _, _ = compared
    pages = []
    for place in (tmp_path / "one", tmp_path / "two"):
        summary = write_report([out], place)
        assert json.loads((place / "summary.json").read_text()) == summary
        pages.append((place / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert summary["steps"] == 3 and [row["arm"] for row in summary["arms"]] == ["plain", "lisa"]
    for row in summary["arms"]:
        assert row["seeds"] == [0, 1] and row["seconds_per_step"]["value"] > 0 and row["peak_memory_mb"]["value"] > 0
        assert None not in (row["final_gain"]["value"], row["fidelity"]["value"])
    assert summary["settings"]["train.batch_size"] == 2
    titles = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^,"]+), step 3', pages[0].decode())
    assert titles == ["condition", "without control", "plain", "lisa", "ground truth"]


def test_what_is_finished_is_not_trained_again(compared, sd_small):
    lines = []
    assert train_runs(plan(compared[0], sd_small), say=lines.append, launch=never)
    assert lines == ["all 4 runs are there"]


def test_other_settings_than_those_of_a_run_are_refused(compared, sd_small):
    changed = plan(compared[0], sd_small, train__learning_rate=0.5)
    with pytest.raises(LisaError, match=r"other settings: train.learning_rate is 0.5 now, it was 0.001"):
        train_runs(changed, launch=never)
    elsewhere = plan(compared[0], sd_small, log__checkpoint_every=7)  # changes nothing about the result
    assert train_runs(elsewhere, launch=never)


def test_one_run_made_elsewhere_is_the_same_and_fits_in(compared, sd_small, tmp_path):
    out, _, _ = compared
    other = plan(tmp_path / "other", sd_small)
    assert train_runs(other, parse_only("lisa:1", other), launch=here)
    assert [path.parent.name for path in (tmp_path / "other").glob("*/seed-*")] == ["lisa"]
    runs.assert_same(out / "lisa" / "seed-1", tmp_path / "other" / "lisa" / "seed-1")
    shutil.copytree(out, tmp_path / "part", ignore=shutil.ignore_patterns("checkpoints", "cache"))
    shutil.rmtree(tmp_path / "part" / "lisa" / "seed-1")
    whole, merged = (summarise(read_comparison(f)) for f in ([out], [tmp_path / "other", tmp_path / "part"]))
    for ours, theirs in zip(whole["arms"], merged["arms"], strict=True):
        assert ours["final_gain"] == theirs["final_gain"] and ours["fidelity"] == theirs["fidelity"]
        assert ours["seeds"] == theirs["seeds"] == [0, 1]
    hole = summarise(read_comparison([tmp_path / "part"]))
    assert "lisa: there is no run of seed 1." in hole["notes"]


def test_stopped_and_continued(compared, sd_small, tmp_path, monkeypatch):
    out = tmp_path / "stopped"
    runs.signal_at(monkeypatch, 2, signal.SIGINT)
    lines, begun = [], []

    def launch(file, stop):
        begun.append(file)
        return here(file, stop)

    wanted = plan(out, sd_small, seeds="1")
    assert not train_runs(wanted, launch=launch, say=lines.append)
    assert len(begun) == 1 and [path.name for path in (out / "plain/seed-0/checkpoints").iterdir()] == ["step-000002"]
    assert train_runs(wanted, launch=here)
    for arm in ("plain", "lisa"):
        runs.assert_same(compared[0] / arm / "seed-0", out / arm / "seed-0")


@pytest.fixture(scope="module")
def longer(sd_small, tmp_path_factory):
    """Runs of six steps, averaged and read every third; one of an alignment that stops by what is read."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert train_runs(plan(out, sd_small, ARMS_THAT_READ, "1", train__steps=6, **LONGER), launch=here)
    return out


ARMS_THAT_READ = "plain,early-stop"
LONGER = {"log__held_out_every": 3, "train__ema": 0.5, "align__min_delta": 100.0, "align__patience": 1}


def test_finished_runs_go_on_with_more_steps(longer, sd_small, tmp_path):
    """To the readings and weights of so many steps at once; those that have not got there are unfinished."""
    out = tmp_path / "out"

    def asked(steps):
        return plan(out, sd_small, ARMS_THAT_READ, "1", train__steps=steps, **LONGER)

    assert train_runs(asked(3), launch=here)
    assert train_runs(asked(6), {("plain", 0)}, launch=here)
    part = write_report([out], out)
    assert part["steps"] == 6 and part["arms"][1]["unfinished"] == {"0": 3}
    assert "early-stop: seed 0 is not finished (step 3 of 6) and is left out." in part["notes"]
    assert not any("early-stop, seed 0" in note for note in part["notes"]), "figures of fewer steps are none"
    assert train_runs(asked(6), launch=here)
    for arm in ("plain", "early-stop"):
        runs.assert_same(longer / arm / "seed-0", out / arm / "seed-0")
    assert train_runs(asked(6), launch=never)
    with pytest.raises(LisaError, match=r"train\.steps is 3 now, it was 6"):  # they do not go back
        train_runs(asked(3), launch=never)


def test_one_that_diverged_does_not_go_on(longer, sd_small, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(longer, out)
    run = out / "early-stop" / "seed-0"
    RunFolder(run).log(6, "stopped", {"reason": "not finite"})
    (run / "summary.json").unlink()
    begun = []

    def launch(file, stop):
        begun.append(yaml.safe_load(file.read_text())["out"])
        return here(file, stop)

    assert train_runs(plan(out, sd_small, ARMS_THAT_READ, "1", train__steps=9, **LONGER), launch=launch)
    assert begun == [str(out / "plain" / "seed-0")]
    summary = write_report([out], out)
    assert summary["arms"][1]["diverged"] == [0] and summary["arms"][1]["final_gain"] is None


@pytest.mark.parametrize(
    ("changes", "arm", "why"),
    [
        ({"train__lr_schedule": "cosine"}, "plain", "train.lr_schedule=cosine ends with"),
        ({"align__schedule": "cosine"}, "lisa", "align.schedule=cosine ends with"),
        ({"train__warmup": 5}, "plain", "train.warmup=5 was not over after 3"),
        ({"log__held_out_every": 2}, "plain", "at step 3 there was a reading that log.held_out_every=2"),
        ({"train__lr_schedule": "constant", "train__warmup": 5}, "plain", None),
    ],
)
def test_what_keeps_a_run_from_going_on(compared, sd_small, tmp_path, changes, arm, why):
    out = tmp_path / "out"
    run = out / arm / "seed-0"
    shutil.copytree(compared[0] / arm / "seed-0", run)
    there = plan(out, sd_small, arm, "1", **changes).configs[arm, 0]
    comparing.save_settings(there.model_copy(update={"resume": None}), run / "config.yaml")
    assert train_runs(plan(out, sd_small, arm, "1", **changes), launch=never)
    more = plan(out, sd_small, arm, "1", train__steps=6, **changes)
    if why is None:
        assert train_runs(more, launch=lambda *_: 0)
    else:
        with pytest.raises(LisaError, match=rf"train\.steps is 6 now, it was 3.*cannot go on with more steps: {why}"):
            train_runs(more, launch=never)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("plain,x:align.layer=down.77", r"arm x: .*down\.77"),
        ("plain,x:align.weight=-1", r"arm x: (?s:.*)align\.weight"),
        ("plain,x:align.wieght=1", r"arm x: (?s:.*)did you mean 'weight'"),
        ("plain,x:train.optimizer=adamw-8bit", "arm x: train.optimizer=adamw-8bit"),
        ("lisa,x:align.weight=0.2", "the arms 'lisa' and 'x' are the same"),
        (
            "plain,a:preset=sooner,b:preset=sooner;align.enabled=false;align.target=shuffled",
            "the arms 'a' and 'b' are the same",
        ),
    ],
)
def test_every_arm_is_checked_before_the_first_one_trains(sd_small, tmp_path, arms, message):
    with pytest.raises(LisaError, match=message):
        train_runs(plan(tmp_path / "out", sd_small, arms), launch=never)
    assert not (tmp_path / "out").exists()


def test_layers_of_the_model_are_spread(sd_small, tmp_path):
    config = plan(tmp_path / "out", sd_small, "multi-layer", "1").configs["multi-layer", 0]
    assert config.align.layer == ["down.2", "down.5", "down.7"]
    assert config.data.cache_dir == tmp_path / "out" / "cache"
    own = plan(tmp_path / "out", sd_small, "multi-layer", "1", align__layer="down.2")
    assert own.configs["multi-layer", 0].align.layer == ["down.1", "down.2", "down.5"]
    with pytest.raises(LisaError, match=r"arm multi-layer: 'zero.1' is not among"):
        plan(tmp_path / "out", sd_small, "multi-layer", "1", align__layer="zero.1")
    given = plan(tmp_path / "out", sd_small, "lisa", "1", data__cache_dir=str(tmp_path / "mine"))
    assert given.configs["lisa", 0].data.cache_dir == tmp_path / "mine"


def test_the_clock_decides_no_reading(sd_small, tmp_path):
    wanted = plan(tmp_path / "out", sd_small, seeds="1", log__fidelity_share=0.5)
    assert {config.log.fidelity_share for config in wanted.configs.values()} == {None}


def test_resume_and_overwrite_are_not_for_comparisons(sd_small, tmp_path):
    with pytest.raises(LisaError, match="always goes on with the runs that are there"):
        plan(tmp_path / "out", sd_small, overwrite=True)


def test_one_that_diverges_does_not_stop_the_others(sd_small, tmp_path):
    codes, lines = [3, 0], []
    assert train_runs(plan(tmp_path / "a", sd_small, seeds="1"), say=lines.append, launch=lambda *_: codes.pop(0))
    assert codes == [] and "plain, seed 0 diverged; the others go on" in lines
    for code, told in ((2, "exit code 2"), (-9, "killed, perhaps because the memory")):
        with pytest.raises(LisaError, match=f"plain, seed 0 failed .{told}"):
            train_runs(plan(tmp_path / "b", sd_small, seeds="1"), launch=lambda *_, code=code: code)


def test_a_process_of_its_own(sd_small, tmp_path, monkeypatch):
    """The real thing, once; and a request to stop reaches it, however early."""
    wanted = plan(tmp_path / "out", sd_small, "lisa", "1")
    asked = StopRequest()
    asked.requested = True
    file = tmp_path / "out.yaml"
    assert train_in_process(file, asked) in (-signal.SIGTERM, 130)
    assert train_runs(wanted)
    assert json.loads((tmp_path / "out/lisa/seed-0/summary.json").read_text())["peak_rss_mb"] > 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LisaError, match="started in several processes"):
        train_runs(wanted)


def test_seeds():
    assert parse_seeds("5") == [0, 1, 2, 3, 4] and parse_seeds("3-4") == [3, 4]
    assert parse_seeds("7,") == [7] and parse_seeds("8, 0,2-3") == [0, 2, 3, 8]
    for wrong in ("0", "", "4-3", "a", "-1", "1.5", "²", "0-²"):
        with pytest.raises(LisaError, match=f"^'{wrong}' tells no seeds"):
            parse_seeds(wrong)


def test_only(sd_small, tmp_path):
    wanted = plan(tmp_path / "out", sd_small, "plain,lisa", "3")
    assert parse_only("plain:0,lisa:1-2", wanted) == {("plain", 0), ("lisa", 1), ("lisa", 2)}
    assert parse_only("lisa", wanted) == {("lisa", seed) for seed in range(3)}
    with pytest.raises(LisaError, match=r"'lsia', which is not compared. Choices: plain, lisa"):
        parse_only("lsia:0", wanted)
    with pytest.raises(LisaError, match="seed 3, which is not compared"):
        parse_only("lisa:3", wanted)
    with pytest.raises(LisaError, match="tells no seeds"):
        parse_only("lisa:x", wanted)


def test_memory_is_given_back_before_the_trainings(sd_small, tmp_path, monkeypatch):
    """What the checks load is gone when the first training begins."""
    import weakref

    made = []
    original = comparing.parts.build_pair

    def build(config):
        pair = original(config)
        made.append(weakref.ref(pair.main.network))
        return pair

    monkeypatch.setattr(comparing.parts, "build_pair", build)
    alive = []

    def launch(file, stop):
        alive.append([reference() is not None for reference in made])
        return 0

    assert train_runs(plan(tmp_path / "out", sd_small, seeds="1"), launch=launch)
    assert len(made) == 1 and alive == [[False], [False]]
