import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lisa.common import files
from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, atomic_write, copy_linked, read_json, restore_dir, write_json, write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_and_keeps_its_suffix_while_it_is_written(tmp_path):
    target = tmp_path / "deep" / "a.npy"
    with atomic_write(target) as temporary:
        assert temporary.suffix == ".npy" and temporary.parent == target.parent
        temporary.write_bytes(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert names(target.parent) == ["a.npy"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "checkpoint"
    for version in ("one", "two"):
        with atomic_dir(target) as temporary:
            (temporary / f"{version}.txt").write_text(version)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "x").write_text("x")
    assert names(target) == ["sub", "two.txt"]
    assert names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0"),
        Exception('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
    ],
    ids=["os", "torch", "safetensors"],
)
def test_a_full_disk_is_one_clear_message_and_the_last_good_folder_stays_whole(tmp_path, error):
    target = tmp_path / "checkpoint"
    with atomic_dir(target) as temporary:
        (temporary / "weights").write_text("good")
    message = r"no space left on the disk while writing '.*checkpoint' \(.* MiB free\)"
    with pytest.raises(LisaError, match=message), atomic_dir(target) as temporary:
        (temporary / "weights").write_text("ba")
        raise error
    assert (target / "weights").read_text() == "good" and names(tmp_path) == ["checkpoint"]


def test_a_really_full_disk(tmp_path):
    """A limit on the size of files stands in for a full disk: the write itself fails, in the middle."""
    script = f"""
import resource, signal
from lisa.common.files import atomic_write, write_text
from lisa.common.errors import LisaError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = {str(tmp_path / "weights")!r}
write_text(path, "good")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"x" * (1 << 20))
except LisaError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("no space left"), done.stderr
    assert (tmp_path / "weights").read_text() == "good" and names(tmp_path) == ["weights"]


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), atomic_dir(tmp_path / "a"):
        raise KeyError("mine")
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "not about our target", "/elsewhere/entirely")
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(LisaError, match="a file stands where a folder is needed"), atomic_dir(tmp_path / "a"):
        pass
    with pytest.raises(LisaError, match="a file stands where a folder is needed"), atomic_write(tmp_path / "a" / "b"):
        pass
    (tmp_path / "d").mkdir()
    with pytest.raises(LisaError, match="a folder stands where a file is needed"):
        write_text(tmp_path / "d", "text")


def test_no_permission_is_named(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(files.os, "replace", refuse)  # tests may run as root, who is allowed everything
    with pytest.raises(LisaError, match=r"not allowed to write '.*a.txt'"):
        write_text(tmp_path / "a.txt", "text")


def test_a_replacement_cut_short_is_undone(tmp_path):
    target = tmp_path / "checkpoint"
    (tmp_path / ".old-checkpoint").mkdir()  # what a process killed between the two renames leaves
    (tmp_path / ".old-checkpoint" / "weights").write_text("good")
    assert restore_dir(target) and not restore_dir(target)
    assert (target / "weights").read_text() == "good" and names(tmp_path) == ["checkpoint"]


def test_a_replacement_cut_short_is_undone_before_the_next_attempt(tmp_path):
    target = tmp_path / "checkpoint"
    write_text(tmp_path / ".old-checkpoint" / "weights", "good")
    with pytest.raises(KeyError), atomic_dir(target):
        raise KeyError
    assert (target / "weights").read_text() == "good" and names(tmp_path) == ["checkpoint"]
    write_text(tmp_path / ".old-checkpoint" / "weights", "older")  # killed after the second rename: the new one counts
    assert not restore_dir(target)
    assert (target / "weights").read_text() == "good" and names(tmp_path) == ["checkpoint"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    target = tmp_path / "checkpoint"
    write_text(target / "weights", "good")
    rename = Path.rename

    def fail_for_new(self, other):
        if self.name.startswith(".tmp-"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(LisaError, match="no space"), atomic_dir(target) as temporary:
        (temporary / "weights").write_text("new")
    assert (target / "weights").read_text() == "good" and names(tmp_path) == ["checkpoint"]


def test_what_killed_processes_left_is_removed_and_what_live_ones_write_is_not(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead = tmp_path / f"{files._owner()}{finished.pid}-0000-run"
    live = tmp_path / f"{files._owner()}{os.getpid()}-0000-run"
    dead.mkdir()
    live.mkdir()
    with atomic_dir(tmp_path / "run"):
        pass
    assert not dead.exists() and live.exists()


def test_json_is_plain_and_strict(tmp_path):
    class Interval:
        def to_json(self):
            return {"value": np.float32(0.5), "low": float("nan")}

    path = write_json(
        tmp_path / "a.json", {"i": Interval(), "n": np.arange(2), "p": Path("x"), "t": (1, float("inf")), 3: True}
    )
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_json(path) == {
        "i": {"value": 0.5, "low": None}, "n": [0, 1], "p": "x", "t": [1, None], "3": True,
    }  # fmt: skip
    assert json.loads(text)["n"] == [0, 1]


def test_reading_what_is_not_json(tmp_path):
    with pytest.raises(LisaError, match="there is no file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(LisaError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")


def test_a_linked_copy_outlives_the_replacement_of_its_source(tmp_path, monkeypatch):
    """One file under two names where the disk can, a copy where it cannot: the same afterwards."""
    for can in (True, False):
        source, target = tmp_path / f"source-{can}", tmp_path / f"target-{can}"
        with atomic_dir(source) as folder:
            write_text(folder / "deep" / "a.txt", "old")
        if not can:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another disk")))
        copy_linked(source, target)
        assert (source / "deep/a.txt").samefile(target / "deep/a.txt") == can
        write_text(source / "deep" / "a.txt", "new")
        with atomic_dir(source) as folder:
            write_text(folder / "b.txt", "newest")
        assert (target / "deep/a.txt").read_text() == "old"
