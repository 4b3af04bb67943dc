"""The run folder: the one record of a run, and the only thing that reports and comparisons read.

::

    config.yaml         what was set, complete
    events.jsonl        append-only: one JSON object a line, with "step", "kind" and "time"
    checkpoints/        step-000100/, ...
    samples/            pictures made while training
    side_network/       what the user takes away, a plain diffusers folder
    best/               the same, as it was at the best reading of the fidelity
    summary.json        the figures at the end
    analysis/           what its features encode, once lisa analyse has been asked
    training.lock       held while a process trains here
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lisa.common.errors import LisaError
from lisa.common.files import explain_disk_errors

_MARKS = ("config.yaml", "events.jsonl", "checkpoints", "summary.json")
# What a run writes, and therefore what replacing it removes: nothing else in the folder is ours to delete.
_OWN = (*_MARKS, "samples", "side_network", "best", "cache", "tracker", "analysis")
#: In a grid of samples, the title of the column that the side network has a part in.
CONTROLLED = "with control"
_LOCK = "training.lock"
#: Seconds.
_PATIENCE = 2.0
#: A file system without locks, as some network ones are: a run goes on without.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_PRETRAINING = "stages"
_OWN_PRETRAINING = (_PRETRAINING, "vae", "model")


class RunFolder:
    """Paths and events of one run.

    Args:
        path: the folder; made by :meth:`open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.side_network = self.path / "side_network"
        self.best = self.path / "best"
        self.summary = self.path / "summary.json"

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return any((self.path / mark).exists() for mark in _MARKS)

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that cannot be used, without touching it.

        Raises:
            LisaError: a run is already there and neither ``overwrite`` nor ``resume`` was said; a non-empty folder that
                is no run would be overwritten; another process trains there; or the folder cannot be made, or written
                to.
        """
        self._check_content(overwrite=overwrite, resume=resume)
        self._check_free()

    def _check_content(self, *, overwrite: bool, resume: bool) -> None:
        self._check_place()
        if self.exists and not (overwrite or resume):
            raise LisaError(
                f"the run folder {str(self.path)!r} already holds a run",
                "Continue it with --resume (in Python: resume='latest'), replace it with --overwrite, or name another",
            )
        # Every run has events from its first moment; a lone config.yaml may be anyone's.
        if overwrite and not self.events.exists() and self._holds_something():
            raise LisaError(
                f"{str(self.path)!r} is not empty and is not a run folder, so it is not overwritten",
                "Name another folder or empty it yourself",
            )

    def _check_free(self) -> None:
        if (self.path / _LOCK).exists():
            with self.locked():
                pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Until the block, or this process, ends no other one trains here; the folder is made, if need be.

        Raises:
            LisaError: another one does already.
        """
        with explain_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            try:
                # Others may be looking whether it is free, for a moment.
                lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
            except Timeout:
                raise LisaError(
                    f"another process is training in the run folder {str(self.path)!r}",
                    "Wait until it has ended, stop it, or name another folder with out=. "
                    f"If there is none, delete {_LOCK} there",
                ) from None
            except (NotImplementedError, OSError) as error:
                if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                    raise
        try:
            yield
        finally:
            lock.release()

    def open(self, *, overwrite: bool, resume: bool) -> None:
        """Make the folder, inside of :meth:`locked`; ``overwrite`` first removes what the earlier run wrote, no more.

        Raises:
            LisaError: as :meth:`check`, but for another process, which the lock keeps away.
        """
        self._check_content(overwrite=overwrite, resume=resume)
        with explain_disk_errors(self.path):
            if overwrite and self.exists:
                pretrained = (self.path / _PRETRAINING).is_dir()
                for name in (*_OWN, *(_OWN_PRETRAINING if pretrained else ())):
                    _remove(self.path / name)
            self.path.mkdir(parents=True, exist_ok=True)
            self.events.touch()

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event; numbers that are not finite become null, since JSON has none.

        Raises:
            LisaError: the disk is full or not writable.
        """
        event = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        line = (json.dumps(_clean(event), allow_nan=False) + "\n").encode()
        with explain_disk_errors(self.events), self.events.open("a+b") as file:
            # A line that a crash or a full disk cut short must not swallow this one.
            if file.tell() and _last_byte(file) != b"\n":
                line = b"\n" + line
            file.write(line)

    def read_events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The events that count: what came after the checkpoint that was resumed from is left out.

        A line cut short by a crash is passed over. Where a run has stages, each with steps of its own (pretraining), a
        ``resumed`` event that names its ``stage`` leaves the events of other stages alone.
        """
        kept: list[dict[str, Any]] = []
        if self.events.exists():
            for line in self.events.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if not isinstance(event, dict) or not {"step", "kind"} <= event.keys():
                    continue
                if event["kind"] == "resumed":
                    kept = [earlier for earlier in kept if _survives(earlier, event)]
                kept.append(event)
        return iter([event for event in kept if kind is None or event["kind"] == kind])

    def _holds_something(self) -> bool:
        return self.path.is_dir() and any(path.name != _LOCK for path in self.path.iterdir())

    def _check_place(self) -> None:
        """The folder, or what it would be made in, is a folder that may be written to."""
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir():
            what = "is a file" if nearest == self.path else f"cannot be made: {str(nearest)!r} is a file"
            raise LisaError(f"the run folder {str(self.path)!r} {what}", "Name another folder with out=")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise LisaError(
                f"not allowed to write the run folder {str(self.path)!r}",
                "Name a folder that you may write to with out=",
            )


def _survives(event: Mapping[str, Any], resumed: Mapping[str, Any]) -> bool:
    """Whether an event is part of the run that goes on at ``resumed``."""
    if "stage" in event and "stage" in resumed and event["stage"] != resumed["stage"]:
        return True
    if resumed.get("checkpoint", "") is None:
        return False  # there was no checkpoint yet: the run started anew
    return bool(event["step"] <= resumed["step"])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
