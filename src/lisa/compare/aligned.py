"""Run folders as data: the curves of every arm and seed, and the check that they can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# What decides what is measured: the same in all runs. The rest (align, train, side, ...) is what arms may differ in.
_LOGGED = ("log.held_out_levels", "log.held_out_every", "log.fidelity_samples", "log.fidelity_every")
_SHARED = ("data", "sample", *_LOGGED, "model.path", "model.pair", "model.log_sigma", "train.steps")
# Where things are and how they are kept: may differ anywhere.
_PLACES = ("out", "resume", "overwrite", "data.cache", "data.cache_dir", "data.workers", "sample.batch_size")


def shared_by_arms(name: str) -> bool:
    """Whether the setting (dotted name) must be the same in all arms, because it decides what is measured."""
    return _under(name, _SHARED) and not _under(name, _PLACES)


def of_the_place(name: str) -> bool:
    """Whether the setting says where and how things are kept, and nothing about the result."""
    return _under(name, _PLACES)


def hindrance(settings: Mapping[str, Any], steps: int) -> str | None:
    """What keeps a run of so many ``steps`` from being the beginning of a longer one with these settings, if anything.

    Schedules that look at how many steps there will be, or a reading at its end that the longer one would not make.
    """
    rate, every = settings.get("train.lr_schedule", "constant"), settings.get("log.held_out_every", 1)
    if not rate.startswith("constant"):
        return f"train.lr_schedule={rate} ends with the last step"
    if rate != "constant" and settings.get("train.warmup", 0) > steps:
        return f"train.warmup={settings['train.warmup']} was not over after {steps} steps"
    aligned = settings.get("align.enabled", True) and settings.get("align.weight", 1) > 0
    if aligned and settings.get("align.schedule") == "cosine":
        return "align.schedule=cosine ends with the last step"
    if steps % every:
        return f"at step {steps} there was a reading that log.held_out_every={every} does not ask for"
    return None


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


@dataclass(frozen=True)
class Comparison:
    """Runs that can be compared.

    Attributes:
        runs: by arm and seed; holes are allowed.
        arms: in the order of the report, the baseline first.
        seeds: in order.
        baseline: the arm that the others are compared with; it may have no runs yet.
    """

    runs: Mapping[tuple[str, int], Run]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str

    def of(self, arm: str) -> dict[int, Run]:
        """By seed, the runs of an arm that count."""
        found = {seed: self.runs.get((arm, seed)) for seed in self.seeds}
        return {seed: run for seed, run in found.items() if run is not None and run.counts}

    @property
    def any_run(self) -> Run:
        """For what all of them share."""
        return next(iter(self.runs.values()))


def read_comparison(
    folders: Sequence[str | Path],
    *,
    baseline: str = "plain",
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
) -> Comparison:
    """The runs ``FOLDER/<arm>/seed-<n>`` of all folders.

    Args:
        folders: of ``lisa compare``, from as many machines as there are.
        baseline: name of the arm that the others are compared with.
        arms: what is wanted; a wanted arm without a run is a hole, other arms are left out. None: what there is.
        seeds: the same for seeds.

    Raises:
        LisaError: there is no run, one cannot be read, the same run has been finished (or has diverged) twice, or
            runs measure different things; the message names the setting. (Runs of fewer steps than others have, which
            may go on, are unfinished.)
    """
    runs: dict[tuple[str, int], Run] = {}
    for folder in folders:
        for run in _read_folder(Path(folder)):
            before = runs.get((run.arm, run.seed))
            if before is not None and before.counts and run.counts:
                states = f"both {run.state}" if before.state == run.state else f"one {before.state}, one {run.state}"
                raise LisaError(
                    f"{str(before.path)!r} and {str(run.path)!r} are the same arm and seed, {states}",
                    "Leave one of them out",
                )
            if before is None or (run.counts, run.step) > (before.counts, before.step):
                runs[run.arm, run.seed] = run
    names = sorted({arm for arm, _ in runs}) if arms is None else list(dict.fromkeys(arms))
    numbers = sorted({seed for _, seed in runs}) if seeds is None else sorted(set(seeds))
    ordered = tuple(sorted(names, key=lambda name: name != baseline))
    chosen = {(arm, seed): run for arm in ordered for seed in numbers if (run := runs.get((arm, seed))) is not None}
    if not chosen:
        raise LisaError(
            f"there is no run of the arms {', '.join(names)} in {', '.join(map(str, folders))}"
            if names
            else f"there is no run in {', '.join(map(str, folders))}",
            "Runs are in FOLDER/<arm>/seed-<n>, as lisa compare writes them",
        )
    longest = max(run.settings.get("train.steps", 0) for run in chosen.values())
    chosen = {key: _of_the_longer(run, longest) for key, run in chosen.items()}
    _check_alike(list(chosen.values()))
    return Comparison(chosen, ordered, tuple(numbers), baseline)


def _of_the_longer(run: Run, longest: int) -> Run:
    """A run that is to go on with as many steps as the others have already, or are having."""
    steps = run.settings.get("train.steps", longest)
    if steps >= longest or hindrance(run.settings, steps) is not None:
        return run
    run = replace(run, settings={**run.settings, "train.steps": longest})
    return run if run.state == "diverged" else replace(run, state="unfinished", summary={})


def _read_folder(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise LisaError(f"there is no folder {str(folder)!r}", "Name a folder that lisa compare has written")
    places = sorted(folder.glob("*/seed-*"))
    return [read_run(path, path.parent.name, int(m[1])) for path in places if (m := _named(path)) is not None]


def _named(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"seed-(\d+)", path.name) if (path / "config.yaml").is_file() else None


def read_run(path: Path, arm: str, seed: int) -> Run:
    """One run folder.

    Raises:
        LisaError: its files cannot be read, or it is of another seed than it is called after.
    """
    folder = RunFolder(path)
    settings = _settings(folder.config)
    if settings.get("seed") != seed:
        raise LisaError(f"{str(path)!r} was trained with seed {settings.get('seed')}", "Name the folder after its seed")
    events = list(folder.read_events())
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    state = _state(settings, summary, events)
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
    return flat(raw)


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


def _check_alike(runs: Sequence[Run]) -> None:
    """What is measured is the same in all runs, and all settings are the same in all seeds of an arm."""
    for run in runs[1:]:
        _compare(runs[0], run, shared_by_arms)
    first = {run.arm: run for run in reversed(runs)}
    for run in runs:
        _compare(first[run.arm], run, lambda name: name != "seed" and not _under(name, (*_PLACES, "log")))


def _compare(one: Run, other: Run, counts: Any) -> None:
    """What both have set: a setting that only one has is of another version of LISA, which the report notes."""
    for name in sorted(one.settings.keys() & other.settings.keys()):
        if counts(name) and one.settings[name] != other.settings[name]:
            raise LisaError(
                f"{str(one.path)!r} and {str(other.path)!r} cannot be compared: {name} is "
                f"{one.settings[name]!r} in the one and {other.settings[name]!r} in the other",
                "Train both with the same, or leave one out",
            )


def _under(name: str, sections: Sequence[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)
