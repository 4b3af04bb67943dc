"""Checkpoints: whole or absent, the newest kept, found by any of their names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.core.meter import LearningMeter
from lisa.train.callbacks import EventLog
from lisa.train.checkpoint import Checkpoints, Shares, find_checkpoint, list_checkpoints
from lisa.train.loop import LoopState

SAFETENSORS = "accelerate.utils.other.safe_save_file"


@pytest.fixture
def saved(tmp_path):
    """A run with a way to save it, and the network and state that are saved."""
    accelerator = Accelerator(cpu=True)
    net, state = accelerator.prepare(nn.Linear(2, 2)), LoopState()
    accelerator.register_for_checkpointing(state)
    run = RunFolder(tmp_path / "run")
    run.open(overwrite=False, resume=False)
    exports = {"note.txt": lambda path: path.write_text(str(state.step))}

    class Saved:
        checkpoints = Checkpoints(run, accelerator, exports)

        def save(self, step, limit=0):
            self.checkpoints.limit = limit
            state.step = step
            net.weight.data.fill_(step)
            return self.checkpoints.save(step)

        def names(self):
            return [path.name for path in list_checkpoints(run)]

    each = Saved()
    each.run, each.net, each.state = run, net, state
    return each


def test_what_is_saved_comes_back(saved):
    path = saved.save(3)
    assert sorted(p.name for p in path.iterdir()) == ["note.txt", "state"] and (path / "note.txt").read_text() == "3"
    saved.save(4)
    saved.checkpoints.load(path)
    assert saved.state.step == 3 and float(saved.net.weight.detach().mean()) == 3


def test_the_newest_are_kept(saved):
    for step in (1, 2, 10, 100):
        saved.save(step, limit=2)
    assert saved.names() == ["step-000010", "step-000100"]
    saved.save(200, limit=0)
    assert len(saved.names()) == 3, "0 keeps all"


def test_a_branch_that_was_given_up_does_not_outlive_the_new_one(saved):
    """Resumed from step 10, the checkpoints of 20 and 30 are of another course: "latest" must not find them."""
    for step in (10, 20, 30):
        saved.save(step)
    saved.save(15, limit=2)
    assert saved.names() == ["step-000010", "step-000015"]


def test_once_resumed_from_it_no_later_one_is_found(saved):
    """Also where the new course ends before its first checkpoint."""
    for step in (10, 20, 30):
        saved.save(step)
    saved.checkpoints.give_up_after(20)
    assert saved.names() == ["step-000010", "step-000020"]
    saved.checkpoints.give_up_after(20)
    assert saved.names() == ["step-000010", "step-000020"]


def test_found_by_any_name(saved):
    first, last = saved.save(7), saved.save(12)
    for name, expected in {"latest": last, "7": first, "0012": last, "step-000007": first, str(first): first}.items():
        assert find_checkpoint(saved.run, name) == expected
    assert find_checkpoint(RunFolder(saved.run.path / "other"), "latest") is None
    with pytest.raises(LisaError, match=r"no checkpoint '8'.*Choices: step-000007, step-000012"):
        find_checkpoint(saved.run, "8")


def test_a_replacement_cut_short_is_undone(saved):
    path = saved.save(7)
    path.rename(path.with_name(".old-step-000007"))
    (path.parent / ".tmp-host-1-x-step-000009").mkdir()
    assert saved.names() == []
    assert find_checkpoint(saved.run, "latest") == path


def writing_fails(monkeypatch, where):
    """The disk is full from ``where`` on, as each writer reports it."""

    def full(*args, **kwargs):
        path = Path(next(a for a in args if isinstance(a, str | os.PathLike)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
        if where == SAFETENSORS:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        if where == "torch.save":
            raise RuntimeError(
                "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data"
            )
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(where, full)


@pytest.mark.parametrize("where", [SAFETENSORS, "torch.save", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_the_last_one_whole(saved, monkeypatch, where):
    path = saved.save(1)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with monkeypatch.context() as patch:
        writing_fails(patch, where)
        with pytest.raises(LisaError, match="no space left on the disk while writing") as caught:
            saved.save(2, limit=1)
    assert caught.value.exit_code == 2 and "step-000002" in str(caught.value) and "still whole" in str(caught.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [p.name for p in saved.run.checkpoints.iterdir()] == ["step-000001"], "nothing half is left"
    saved.checkpoints.load(find_checkpoint(saved.run, "latest"))
    assert saved.state.step == 1


def test_several_processes_write_one_folder(saved, monkeypatch):
    """The same, by the way that is taken when there are several: here with one, whose partners do nothing."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    path = saved.save(5)
    assert sorted(p.name for p in path.iterdir()) == ["note.txt", "state"]
    writing_fails(monkeypatch, "torch.save")
    with pytest.raises(LisaError, match="no space left"):
        saved.save(6)
    assert [p.name for p in saved.run.checkpoints.iterdir()] == ["step-000005"]


def test_a_damaged_checkpoint_is_one_message(saved):
    path = saved.save(4)
    for file in (path / "state").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(LisaError, match=r"step-000004.* is damaged or does not fit this configuration"):
        saved.checkpoints.load(path)


def test_shares_of_processes_add_up_to_the_whole():
    """accelerate gives the main process's state to all: each must get its share, or sums would be counted twice."""

    class TwoProcesses:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, tensor, reduction):
            assert reduction == "mean"
            return tensor / 2  # the other process has seen nothing

    meter = LearningMeter()
    torch.manual_seed(0)
    batch = torch.randn(3, 4, 2, 2, 2).unbind(0)
    meter.update(*batch, torch.tensor([1, 500, 700, 999]))
    kept = Shares(meter, TwoProcesses()).state_dict()
    parts = [LearningMeter(), LearningMeter()]
    for part in parts:
        Shares(part, TwoProcesses()).load_state_dict(kept)
    whole = meter.read(local=True)
    sums = [part.state_dict()["sums"] for part in parts]
    assert torch.allclose(sums[0] + sums[1], meter.state_dict()["sums"]) and whole.count == 4
    events = EventLog(None, 5)
    events.load_state_dict({"sums": {"loss": torch.tensor(3.0)}, "counts": {"loss": 2}})
    assert Shares(events, TwoProcesses()).state_dict() == {"sums": {"loss": torch.tensor(1.5)}, "counts": {"loss": 2}}
