"""Trainings of a few steps on a tiny random model, and what of a run must be the same for two runs to be the same."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState

import lisa
from lisa.cli.common import quiet_libraries
from lisa.common.runfolder import RunFolder
from lisa.train.step import ControlStep

# Figures of the machine and of where things lie, not of the training.
MACHINE = ("time", "seconds", "total_seconds", "peak_rss_mb", "side_network", "picture", "path")
SITTING = ("started", "resumed", "stopped")

SMALL: dict[str, Any] = {
    "data": {"size": 32, "scenes": 16, "held_out": 4, "cache": ["latents", "text", "conditions"]},
    "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "warmup": 0, "caption_dropout": 0.5},
    "log": {
        "every": 1,
        "held_out_every": 100,
        "samples_every": 100,
        "samples": 2,
        "checkpoint_every": 100,
        "tracker": "none",
    },
    "sample": {"steps": 1, "count": 2, "batch_size": 2, "guidance": 1.0},
}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """accelerate keeps its settings in the process: what another test left must not reach this one."""
    quiet_libraries()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def settings(out: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of the trainer; ``train__steps=3`` sets ``train.steps``."""
    raw = {**copy.deepcopy(SMALL), "out": str(out), "model": {"path": str(model)}}
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (raw.setdefault(section, {}) if section else raw)[key] = value
    return raw


def train(*args: Any, **changes: Any) -> dict[str, Any] | None:
    """A training with :func:`settings`."""
    return lisa.train(settings(*args, **changes), quiet=True)


def arguments(raw: dict[str, Any]) -> list[str]:
    """The same as overrides for the command line."""
    flat = []
    for name, value in raw.items():
        items = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat += [f"{key}={item if isinstance(item, str) else json.dumps(item)}" for key, item in items.items()]
    return flat


def figures(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in MACHINE}


def events(out: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What happened in a run, however long it took and however often it was interrupted."""
    return [figures(event) for event in RunFolder(out).read_events(kind) if event["kind"] not in SITTING]


def weights(out: Path) -> dict[str, bytes]:
    """Every file of weights that a run leaves, by its path: side network, decoder, and the last checkpoint's state."""
    last = max((out / "checkpoints").glob("step-*"))
    files = [*(out / "side_network").glob("*.safetensors"), *last.rglob("*.safetensors"), *last.rglob("optimizer*")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def assert_same(one: Path, two: Path) -> None:
    """Bit for bit the same weights, the same events, the same figures in the summary."""
    for first, second in zip(events(one), events(two), strict=True):
        assert first == second
    ours, theirs = weights(one), weights(two)
    assert list(ours) == list(theirs) and len(ours) >= 3
    assert [name for name in ours if ours[name] != theirs[name]] == []
    first, second = (figures(json.loads((out / "summary.json").read_text())) for out in (one, two))
    assert first == second


def signal_at(monkeypatch: Any, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it computes optimiser step ``step`` (from 1)."""
    original = ControlStep.__call__
    sent = []

    def call(self: ControlStep, batch: Any, current: int) -> Any:
        if current == step - 1 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, batch, current)

    monkeypatch.setattr(ControlStep, "__call__", call)
