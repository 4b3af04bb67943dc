"""One run folder as data: its settings, its curves, its figures at the end, where its samples are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lisa.common.errors import LisaError
from lisa.common.files import read_json
from lisa.common.intervals import FloatArray
from lisa.common.mappings import flat
from lisa.common.runfolder import RunFolder

#: Finished; ended because its loss was not finite; still to be continued.
State = Literal["finished", "diverged", "unfinished"]


@dataclass(frozen=True)
class Curve:
    """Readings over the steps: ``steps`` (N,), ``values`` (N,)."""

    steps: FloatArray
    values: FloatArray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Grid:
    """A picture of samples, and how its columns lie: titles, height of the head and gap between pictures in pixels.

    Of clips it is an animation (``path``), whose pictures lie so.
    """

    path: Path
    columns: tuple[str, ...] = ()
    head: int = 0
    gap: int = 0


@dataclass(frozen=True)
class Run:
    """One arm with one seed, as its folder tells it. ``settings`` by dotted name; ``clock``: training seconds."""

    arm: str
    seed: int
    path: Path
    settings: Mapping[str, Any]
    state: State
    step: int  # of the last event
    summary: Mapping[str, Any]
    gain: Curve
    gap: Curve
    clock: Curve
    fidelity: Mapping[str, Curve] = field(default_factory=dict)  # by condition, where it was judged while training
    samples: Mapping[int, Grid] = field(default_factory=dict)  # by step

    @property
    def counts(self) -> bool:
        """Whether it went as far as it can: a run that diverged did, one that was interrupted did not."""
        return self.state != "unfinished"

    def done(self, steps: int) -> bool:
        """Whether there is nothing to train of a run that is to have so many steps: it has them, or diverged."""
        return self.state == "diverged" or (self.state == "finished" and self.settings.get("train.steps") == steps)

    def seconds(self, steps: Any) -> FloatArray:
        """Training seconds after ``steps``; held-out readings, sampling and checkpoints are no training."""
        return np.interp(steps, np.append(0.0, self.clock.steps), np.append(0.0, self.clock.values))

    @property
    def seconds_per_step(self) -> float:
        """Over the whole run; NaN before its first event."""
        return float(self.clock.values[-1] / self.clock.steps[-1]) if len(self.clock) else float("nan")


def read_run(path: Path, arm: str, seed: int) -> Run:
    """One run folder.

    Raises:
        LisaError: its files cannot be read, are damaged, or it is of another seed than it is called after.
    """
    try:
        return _read(RunFolder(path), arm, seed)
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise LisaError(
            f"what is written in {str(path)!r} is damaged ({type(error).__name__}: {error})",
            "Leave the run out, or train it again in an empty folder",
        ) from None


def _read(folder: RunFolder, arm: str, seed: int) -> Run:
    path = folder.path
    settings = _settings(folder.config)
    if settings.get("seed") != seed:
        raise LisaError(f"{str(path)!r} was trained with seed {settings.get('seed')}", "Name the folder after its seed")
    events = list(folder.read_events())
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    state = _state(settings, summary, events)
    if state == "finished":
        _check_summary(summary)
    readings = [event for event in events if event["kind"] == "held_out"]
    return Run(
        arm=arm,
        seed=seed,
        path=path,
        settings=settings,
        state=state,
        step=max((int(event["step"]) for event in events), default=0),
        summary=summary if state == "finished" else {},  # else it is of fewer steps
        gain=_curve(readings, "control_gain"),
        gap=_curve(readings, "gap"),
        clock=_curve([event for event in events if event["kind"] == "train"], "seconds"),
        fidelity=_fidelities(events),
        samples={int(e["step"]): _grid(folder, e) for e in events if e["kind"] == "samples" and e.get("path")},
    )


def _settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LisaError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise LisaError(f"{str(path)!r} is not the configuration of a run", "See lisa train")
    settings = flat(raw)
    if not isinstance(settings.get("data.condition"), str | list):
        raise LisaError(f"{str(path)!r} tells no data.condition", "Runs of lisa train have one")
    if "train.steps" in settings:
        settings["train.steps"] = int(settings["train.steps"])
    return settings


def _check_summary(summary: Mapping[str, Any]) -> None:
    """What the report reads of a finished run is there, and what it should be.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another kind.
    """
    kinds = {"control_gain": dict, "condition_gap": dict, "fidelities": dict, "versions": dict, "notes": list}
    for name, kind in kinds.items():
        if not isinstance(summary.get(name) or kind(), kind):
            raise TypeError(f"{name} in summary.json is {summary[name]!r}")
    for name, fidelity in (summary.get("fidelities") or {}).items():
        _need(f"fidelity to {name}", fidelity, "metric", "unit", "protocol", "samples")
        for metric, figure in (fidelity.get("metrics") or {}).items():
            _need(f"{metric} of {name}", figure, "unit", "higher_is_better")


def _need(what: str, figure: Mapping[str, Any], *names: str) -> None:
    """A figure with and without the side network, and what else is said of it."""
    missing = [name for name in names if name not in figure]
    missing += [f"{side}.value" for side in ("with", "without") if "value" not in figure.get(side, {})]
    if missing:
        raise KeyError(f"{what} in summary.json lacks {', '.join(missing)}")


def _state(settings: Mapping[str, Any], summary: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> State:
    if summary and summary.get("steps") == settings.get("train.steps"):
        return "finished"
    last = events[-1] if events else {}
    return "diverged" if last.get("kind") == "stopped" and last.get("reason") == "not finite" else "unfinished"


def _curve(events: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """The value of ``name`` over the steps, once per step (the last event of a step counts)."""
    found: dict[int, float] = {}
    for event in events:
        value = event.get(name)
        value = value.get("value") if isinstance(value, Mapping) else value
        if value is not None:
            found[int(event["step"])] = float(value)
    steps = sorted(found)
    return Curve(np.array(steps, dtype=np.float64), np.array([found[step] for step in steps], dtype=np.float64))


def _fidelities(events: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    judged = [event for event in events if event["kind"] == "fidelity"]
    names = {name for event in judged for name, value in event.items() if isinstance(value, dict) and "value" in value}
    return {name: _curve(judged, name) for name in sorted(names)}


def _grid(folder: RunFolder, event: Mapping[str, Any]) -> Grid:
    layout = event.get("animation_grid") or event.get("grid") or {}
    path = folder.samples / Path(event.get("animation") or event["path"]).name
    return Grid(path, tuple(layout.get("columns", ())), layout.get("head", 0), layout.get("gap", 0))
