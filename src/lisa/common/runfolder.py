"""The run folder: the one record of a run, and the only thing that reports and comparisons read.

::

    config.yaml         what was set, complete
    events.jsonl        append-only: one JSON object a line, with "step", "kind" and "time"
    checkpoints/        step-000100/, ...
    samples/            pictures made while training
    side_network/       what the user takes away, a plain diffusers folder
    summary.json        the figures at the end
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError

_MARKS = ("config.yaml", "events.jsonl", "checkpoints", "summary.json")


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
        self.summary = self.path / "summary.json"

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return any((self.path / mark).exists() for mark in _MARKS)

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that cannot be used, without touching it.

        Raises:
            LisaError: a run is already there and neither ``overwrite`` nor ``resume`` was said, or the path is a file,
                or a non-empty folder that is no run would be overwritten.
        """
        if self.path.is_file():
            raise LisaError(f"the run folder {str(self.path)!r} is a file", "Name a folder")
        if self.exists and not (overwrite or resume):
            raise LisaError(
                f"the run folder {str(self.path)!r} already holds a run",
                "Continue it with resume=latest (on the command line: --resume), replace it with --overwrite, or name another folder",
            )
        if overwrite and not self.exists and self.path.is_dir() and any(self.path.iterdir()):
            raise LisaError(
                f"{str(self.path)!r} is not empty and is not a run folder, so it is not overwritten",
                "Name another folder or empty it yourself",
            )

    def open(self, *, overwrite: bool, resume: bool) -> None:
        """:meth:`check`, then make the folder (``overwrite`` removes the earlier run first)."""
        self.check(overwrite=overwrite, resume=resume)
        if overwrite and self.exists:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event; numbers that are not finite become null, since JSON has none."""
        event = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_clean(event), allow_nan=False) + "\n")

    def read_events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The events that count: what came after the checkpoint that was resumed from is left out.

        A last line cut short by a crash is passed over.
        """
        kept: list[dict[str, Any]] = []
        if self.events.exists():
            for line in self.events.read_text(encoding="utf-8").splitlines():
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event["kind"] == "resumed":
                    kept = [earlier for earlier in kept if earlier["step"] <= event["step"]]
                kept.append(event)
        return iter([event for event in kept if kind is None or event["kind"] == kind])


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
