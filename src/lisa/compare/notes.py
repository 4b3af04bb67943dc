"""What a reader has to know before believing the figures of a comparison."""

from __future__ import annotations

from lisa.compare.aligned import Comparison
from lisa.compare.speed_up import FLAT, Plateau

_ENOUGH_SEEDS = 5


def notes(comparison: Comparison, level: Plateau | None) -> list[str]:
    """One sentence or two for each thing that limits what can be concluded."""
    found = [*_about_the_level(comparison.baseline, level)]
    found += _about_the_seeds(comparison)
    for arm in comparison.arms:
        found += _holes(comparison, arm)
    schedule = str(comparison.any_run.settings.get("train.lr_schedule", "constant"))
    if not schedule.startswith("constant"):
        found.append(
            f"The learning rate is annealed (train.lr_schedule={schedule}): curves are flat at the end because the "
            "steps get small, and speed-ups come out nearer to 1 than with a constant rate."
        )
    averaged = list(dict.fromkeys(run.arm for run in comparison.runs.values() if run.settings.get("train.ema")))
    if averaged:
        found.append(
            f"Weights are averaged (train.ema) in {', '.join(averaged)}: curves of gain and gap, and with them "
            "plateau, speed-up and onset, are of the raw weights; the side network, its fidelity and the "
            "figures at the end are of the average."
        )
    found += _told_by_the_runs(comparison)
    for name, several in versions(comparison).items():
        if len(several) > 1:
            found.append(f"Runs were made with different versions of {name}: {', '.join(several)}.")
    return found


def versions(comparison: Comparison) -> dict[str, list[str]]:
    """Of LISA, torch and Python, as the finished runs tell them."""
    found: dict[str, set[str]] = {}
    for run in comparison.runs.values():
        for name, version in (run.summary.get("versions") or {}).items():
            found.setdefault(name, set()).add(str(version))
    return {name: sorted(several) for name, several in found.items()}


def _told_by_the_runs(comparison: Comparison) -> list[str]:
    """What the trainings themselves noted, with who did."""
    tellers: dict[tuple[str, str], list[str]] = {}
    for run in comparison.runs.values():
        for note in run.summary.get("notes") or []:
            tellers.setdefault((run.arm, str(note)), []).append(str(run.seed))
    return [f"{arm}, seed {', '.join(seeds)}: {note}." for (arm, note), seeds in tellers.items()]


def _about_the_seeds(comparison: Comparison) -> list[str]:
    """Arms with few seeds that the baseline has, too: differences and ratios are paired by seed."""
    paired = {
        arm: len(comparison.of(arm).keys() & comparison.of(comparison.baseline).keys()) for arm in comparison.arms
    }
    if len(paired) > 1:
        paired.pop(comparison.baseline, None)
    few = [f"{count or 'none'} of {arm}" for arm, count in paired.items() if count < _ENOUGH_SEEDS]
    if not few:
        return []
    return [
        f"Few seeds can be paired with {comparison.baseline}: {', '.join(few)}. Seeds differ as much as arms do: quote "
        "nothing below five."
    ]


def _about_the_level(baseline: str, level: Plateau | None) -> list[str]:
    if level is None:
        return [f"There is no finished run of {baseline} to count the steps of: no speed-up, and no onset."]
    if level.level <= 0:
        return [f"{baseline} gains nothing: its control gain ends at {level.level:.3f}. Train longer for a level."]
    if level.growth <= -FLAT:
        return [
            f"{baseline} falls at its end: in its last fifth it loses {-100 * level.growth:.1f}% (the bound is "
            f"{100 * FLAT:.0f}%). Speed-ups are to where it stands then, below what it had reached; look for the "
            "cause, such as too high a learning rate, before you quote them."
        ]
    if not level.reached:
        return [
            f"{baseline} has not reached its plateau: in its last fifth it gains {100 * level.growth:.1f}% (the bound "
            f"is {100 * FLAT:.0f}%). Speed-ups are to where it stands at the end; train longer before you quote them."
        ]
    return []


def _holes(comparison: Comparison, arm: str) -> list[str]:
    """Runs that are missing, not finished, or diverged."""
    found = []
    missing = [str(seed) for seed in comparison.seeds if (arm, seed) not in comparison.runs]
    if missing:
        found.append(f"{arm}: there is no run of seed {', '.join(missing)}.")
    for run in comparison.runs.values():
        if run.arm == arm and run.state == "unfinished":
            total = run.settings.get("train.steps")
            found.append(f"{arm}: seed {run.seed} is not finished (step {run.step} of {total}) and is left out.")
        elif run.arm == arm and run.state == "diverged":
            found.append(
                f"{arm}: seed {run.seed} diverged at step {run.step} (its loss was not finite). It counts among the "
                "steps to each level, and has no figures at the end."
            )
    return found
