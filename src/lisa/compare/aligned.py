"""The runs of every arm and seed, and the check that they can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, choose
from lisa.compare.runs import Run, read_run

#: The arm that the others are compared with, unless another one is named.
BASELINE = "plain"

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
    baseline: str = BASELINE,
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
        LisaError: there is no run, one cannot be read, ``baseline`` is none of the arms, the same run has been
            finished (or has diverged) twice, or runs measure different things; the message names the setting. (Runs of
            fewer steps than others have, which may go on, are unfinished.)
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
    if names and (arms is not None or baseline != BASELINE):  # plain may be trained later, or elsewhere
        choose("baseline", baseline, names)
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
