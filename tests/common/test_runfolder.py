"""The run folder: what may be used, what is replaced, and which events count."""

from __future__ import annotations

import errno
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder


def refuse(path, *, overwrite=False, resume=False):
    before = sorted(Path(path).rglob("*")) if Path(path).is_dir() else None
    with pytest.raises(LisaError) as caught:
        RunFolder(path).open(overwrite=overwrite, resume=resume)
    assert before is None or sorted(Path(path).rglob("*")) == before
    return str(caught.value)


def steps(run, kind=None):
    return [event["step"] for event in run.read_events(kind)]


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.open(overwrite=False, resume=False)
    return run


def test_an_existing_run_is_refused_unless_said(run):
    message = refuse(run.path)
    assert repr(str(run.path)) in message and "--resume" in message and "--overwrite" in message
    RunFolder(run.path).open(overwrite=False, resume=True)
    RunFolder(run.path).open(overwrite=True, resume=False)


def test_a_config_of_the_users_is_no_run_to_replace(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    assert "already holds a run" in refuse(tmp_path)
    assert "is not a run folder, so it is not overwritten" in refuse(tmp_path, overwrite=True)


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(run):
    for name in ("checkpoints/step-000001", "samples", "side_network", "best", "cache", "tracker", "model", "photos"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "file").write_text("x")
    (run.path / "notes.txt").write_text("mine")
    (run.path / "summary.json").write_text("{}")
    run.log(3, "train", {})
    run.open(overwrite=True, resume=False)
    assert sorted(p.name for p in run.path.iterdir()) == ["events.jsonl", "model", "notes.txt", "photos"]
    assert steps(run) == []


def test_a_lock_is_no_content(tmp_path):
    """It lies there from the first moment on, and for good: an empty folder with it is empty."""
    run = RunFolder(tmp_path / "new" / "run")
    with run.locked():
        with pytest.raises(LisaError, match="another process is training"):
            RunFolder(run.path).check(overwrite=True, resume=False)
        run.open(overwrite=True, resume=False)
    RunFolder(run.path).check(overwrite=True, resume=False)
    with RunFolder(run.path).locked():
        pass


def test_where_files_cannot_be_locked_a_run_goes_on_without(tmp_path, monkeypatch):
    """As on some network file systems."""

    def refuse(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)

    refuse(errno.ENOLCK)
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.open(overwrite=False, resume=False)
    assert run.exists
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), run.locked():
        pass


def test_looking_whether_a_folder_is_free_is_in_nobodys_way(run):
    """Every process of a training looks, and so may comparisons beside it."""
    with run.locked():
        pass  # the lock is there from now on
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: RunFolder(run.path).check(overwrite=False, resume=True), range(200)))


def test_a_pretraining_is_replaced_whole(run):
    for name in ("stages", "vae", "model"):
        (run.path / name).mkdir()
    run.open(overwrite=True, resume=False)
    assert [p.name for p in run.path.iterdir()] == ["events.jsonl"]


def test_places_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refuse(tmp_path / "file")
    assert f"{str(tmp_path / 'file')!r} is a file" in refuse(tmp_path / "file" / "deep" / "run")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, whom modes do not stop
    assert "not allowed to write the run folder" in refuse(tmp_path / "run")


def test_events_are_json_lines(run):
    run.log(1, "train", {"loss": math.nan, "deep": {"a": [1.0, math.inf]}, "text": "é"})
    event = json.loads(run.events.read_text().splitlines()[0])
    assert (event["step"], event["kind"]) == (1, "train") and event["time"] > 0
    assert event["loss"] is None and event["deep"] == {"a": [1.0, None]} and event["text"] == "é"


def test_events_after_the_checkpoint_resumed_from_do_not_count(run):
    for step in (1, 2, 3, 4):
        run.log(step, "train", {})
    run.log(2, "resumed", {"checkpoint": "step-000002"})
    run.log(3, "train", {"again": True})
    assert steps(run) == [1, 2, 2, 3] and steps(run, "train") == [1, 2, 3]
    assert next(e for e in run.read_events("train") if e["step"] == 3)["again"]


def test_a_run_started_anew_without_a_checkpoint(run):
    run.log(0, "held_out", {})
    run.log(1, "train", {})
    run.log(0, "resumed", {"checkpoint": None})
    run.log(0, "held_out", {})
    assert [e["kind"] for e in run.read_events()] == ["resumed", "held_out"]


def test_stages_have_steps_of_their_own(run):
    run.log(900, "train", {"stage": "vae"})
    run.log(100, "train", {"stage": "denoiser"})
    run.log(200, "train", {"stage": "denoiser"})
    run.log(100, "resumed", {"stage": "denoiser"})
    assert steps(run, "train") == [900, 100]


@pytest.mark.parametrize("rest", ['{"step": 2, "ki', '{"step": 2, "kind": "train"}', "\xff\xfe", "[1]", '{"a": 1}'])
def test_a_line_cut_short_costs_only_itself(run, rest):
    run.log(1, "train", {})
    with run.events.open("ab") as file:
        file.write(rest.encode("latin-1"))
    run.log(3, "train", {})
    assert steps(run) in ([1, 3], [1, 2, 3])
    assert steps(run) == ([1, 2, 3] if rest.endswith('"train"}') else [1, 3])


def test_a_full_disk_is_one_message(run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.events))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LisaError, match="no space left on the disk while writing"):
        run.log(1, "train", {})
