"""The figures of a comparison: one row per arm, as ``summary.json`` has them and the report shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lisa.common.intervals import t_interval
from lisa.compare.aligned import Comparison, of_the_place
from lisa.compare.notes import notes, versions
from lisa.compare.runs import Curve, Run
from lisa.compare.speed_up import (
    LEVELS,
    ONSET_SHARE,
    Bounded,
    Needed,
    Plateau,
    mean_needed,
    mean_ratio,
    onset,
    plateau,
    speed_up,
    steps_to,
)

AXES = ("steps", "seconds")


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Everything that the report says, as plain JSON values."""
    level = baseline_plateau(comparison)
    some = comparison.any_run
    return {
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "model": some.settings.get("model.path"),
        "pair": some.settings.get("model.pair"),
        "condition": some.settings.get("data.condition"),
        "steps": some.settings.get("train.steps"),
        "levels": list(LEVELS),
        "plateau": None
        if level is None
        else {"level": level.level, "growth": _finite(level.growth), "reached": level.reached},
        "notes": notes(comparison, level),
        "arms": [_row(comparison, arm, level) for arm in comparison.arms],
        "settings": _common_settings(comparison),
        "versions": versions(comparison),
    }


def baseline_plateau(comparison: Comparison) -> Plateau | None:
    """That of the baseline's held-out control gain, mean over its finished runs; None where there is none yet."""
    mean = mean_curve([run.gain for run in _finished(comparison, comparison.baseline).values()])
    return plateau(mean.steps, mean.values) if len(mean) >= 2 else None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the seeds, at the steps that all of them have."""
    steps, values = aligned(curves)
    return Curve(steps, values.mean(axis=0) if len(steps) else steps)


def aligned(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) that all curves have, and their values there (curves, N)."""
    common: set[float] = set.intersection(*(set(curve.steps.tolist()) for curve in curves)) if curves else set()
    steps = np.array(sorted(common))
    return steps, np.array([curve.values[np.isin(curve.steps, steps)] for curve in curves])


def _finished(comparison: Comparison, arm: str) -> dict[int, Run]:
    return {seed: run for seed, run in comparison.of(arm).items() if run.state == "finished"}


def _row(comparison: Comparison, arm: str, level: Plateau | None) -> dict[str, Any]:
    runs, finished = comparison.of(arm), _finished(comparison, arm)
    some = comparison.any_run
    speed = _speed_ups(comparison, arm, level)
    fidelities = {name: _fidelity(finished, name) for name in _conditions(finished)}
    return {
        "arm": arm,
        "model": some.settings.get("model.path"),
        "condition": some.settings.get("data.condition"),
        "seeds": list(runs),
        "missing": [seed for seed in comparison.seeds if (arm, seed) not in comparison.runs],
        "unfinished": {
            str(run.seed): run.step for run in comparison.runs.values() if run.arm == arm and not run.counts
        },
        "diverged": [seed for seed, run in runs.items() if run.state == "diverged"],
        "settings": _differences(comparison, arm),
        "speedup": speed["steps"][str(LEVELS[0])] if speed else None,
        "speedups": speed,
        "onset": _onset(runs, level),
        "final_gain": _mean(finished, final_gain),
        "condition_gap": _mean(finished, final_gap),
        "decoder_r2": _mean(finished, final_decoder_r2),
        "fidelity": next(iter(fidelities.values()), None),
        "fidelities": fidelities,
        "seconds_per_step": _mean(runs, lambda run: run.seconds_per_step),
        "peak_memory_mb": _mean(finished, peak_memory),
        "against_baseline": _against(comparison, arm),
        "per_seed": {str(seed): _of_seed(run, level) for seed, run in runs.items()},
    }


def needed(run: Run, share: float, level: Plateau, axis: str) -> Needed:
    """What a run needed to reach ``share`` of the plateau, in ``steps`` or training ``seconds``."""
    step = steps_to(run.gain.steps, run.gain.values, share * level.level) if len(run.gain) else math.inf
    seen = _length(run)
    if axis == "steps":
        return Needed(step, seen)
    # Of a run that diverged, the time that the rest would have taken.
    whole = run.seconds_per_step * seen if run.state == "diverged" else float(run.seconds(seen))
    return Needed(math.inf if math.isinf(step) else float(run.seconds(step)), whole)


def _length(run: Run) -> float:
    """Steps that the run was to make: one that diverged would not have got there by the others' end either."""
    return float(run.settings.get("train.steps") or run.step)


def onset_step(run: Run, level: Plateau) -> Needed:
    """The onset of a run: its condition gap against a share of the plateau."""
    return Needed(onset(run.gap.steps, run.gap.values, ONSET_SHARE * level.level), _length(run))


def final_gain(run: Run) -> float:
    """Held-out control gain at the end, of the weights that are given away."""
    return _number((run.summary.get("control_gain") or {}).get("value"))


def final_gap(run: Run) -> float:
    """Condition gap at the end."""
    return _number((run.summary.get("condition_gap") or {}).get("value"))


def final_decoder_r2(run: Run) -> float:
    """R2 of the likelihood score that the decoder reads, at the end; nan of a run that does not align."""
    return _number((run.summary.get("decoder_r2") or {}).get("value"))


def peak_memory(run: Run) -> float:
    """MiB: of the accelerator where there was one, else of the process."""
    device = run.summary.get("peak_device_mb")
    return _number(device if device is not None else run.summary.get("peak_rss_mb"))


def final_fidelity(condition: str) -> Callable[[Run], float]:
    """Fidelity to ``condition`` with the side network, at the end."""
    return lambda run: _number(((run.summary.get("fidelities") or {}).get(condition) or {})["with"]["value"])


def _speed_ups(comparison: Comparison, arm: str, level: Plateau | None) -> dict[str, dict[str, Any]] | None:
    ours, theirs = comparison.of(arm), comparison.of(comparison.baseline)
    seeds = [seed for seed in ours if seed in theirs]
    if level is None or level.level <= 0 or not seeds:
        return None
    found: dict[str, dict[str, Any]] = {axis: {} for axis in AXES}
    for axis in AXES:
        for share in LEVELS:
            arm_needs = [needed(ours[seed], share, level, axis) for seed in seeds]
            baseline_needs = [needed(theirs[seed], share, level, axis) for seed in seeds]
            result: Bounded = speed_up(baseline_needs, arm_needs)
            found[axis][str(share)] = {
                **result.to_json(),
                "seeds": seeds,
                "never": [seed for seed, each in zip(seeds, arm_needs, strict=True) if each.never],
                "baseline_never": [seed for seed, each in zip(seeds, baseline_needs, strict=True) if each.never],
            }
    return found


def _onset(runs: Mapping[int, Run], level: Plateau | None) -> dict[str, Any] | None:
    if level is None or level.level <= 0 or not runs:
        return None
    each = {seed: onset_step(run, level) for seed, run in runs.items()}
    return {**mean_needed(list(each.values())).to_json(), "never": [seed for seed, at in each.items() if at.never]}


def _against(comparison: Comparison, arm: str) -> dict[str, Any]:
    """Differences to the baseline, paired by seed; of the time per step the ratio."""
    ours, theirs = _finished(comparison, arm), _finished(comparison, comparison.baseline)
    seeds = [seed for seed in ours if seed in theirs]

    def difference(figure: Callable[[Run], float]) -> dict[str, Any] | None:
        return _interval([figure(ours[seed]) - figure(theirs[seed]) for seed in seeds])

    times = [ours[seed].seconds_per_step / theirs[seed].seconds_per_step for seed in seeds]
    conditions = [name for name in _conditions(ours) if name in _conditions(theirs)]
    return {
        "seeds": seeds,
        "final_gain": difference(final_gain),
        "condition_gap": difference(final_gap),
        "fidelities": {name: difference(final_fidelity(name)) for name in conditions},
        "seconds_per_step": mean_ratio([math.log(ratio) for ratio in times]).to_json() if times else None,
    }


def _of_seed(run: Run, level: Plateau | None) -> dict[str, Any]:
    known = level is not None and level.level > 0
    return {
        "state": run.state,
        **{
            f"{axis}_to": {str(share): _finite(needed(run, share, level, axis).amount) for share in LEVELS}
            for axis in AXES
            if level is not None and known
        },
        "onset": _finite(onset_step(run, level).amount) if level is not None and known else None,
        "final_gain": _finite(final_gain(run)),
        "condition_gap": _finite(final_gap(run)),
        "decoder_r2": _finite(final_decoder_r2(run)),
        "fidelities": {name: _finite(final_fidelity(name)(run)) for name in _conditions({run.seed: run})},
        "seconds_per_step": _finite(run.seconds_per_step),
        "peak_memory_mb": _finite(peak_memory(run)),
    }


def _conditions(runs: Mapping[int, Run]) -> list[str]:
    """The conditions that every one of the runs was judged by at its end."""
    judged = [list(run.summary.get("fidelities") or {}) for run in runs.values()]
    return [name for name in judged[0] if all(name in others for others in judged)] if judged else []


def _fidelity(runs: Mapping[int, Run], condition: str) -> dict[str, Any]:
    facts = next(iter(runs.values())).summary["fidelities"][condition]
    without = [_number(run.summary["fidelities"][condition]["without"]["value"]) for run in runs.values()]
    return {
        **(_mean(runs, final_fidelity(condition)) or {}),
        "without": float(np.mean(without)),
        **{name: facts[name] for name in ("metric", "unit", "protocol", "samples")},
        "condition": condition,
        "metrics": _metrics([run.summary["fidelities"][condition].get("metrics") or {} for run in runs.values()]),
    }


def _metrics(of_runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What else was judged, means over the seeds; of metrics that every run has."""
    found = {}
    for name, about in of_runs[0].items():
        each = [metrics[name] for metrics in of_runs if name in metrics]
        mean = _interval([_number(figure["with"]["value"]) for figure in each])
        if len(each) == len(of_runs) and mean is not None:
            without = float(np.mean([_number(figure["without"]["value"]) for figure in each]))
            found[name] = {**mean, "without": without, **{key: about[key] for key in ("unit", "higher_is_better")}}
    return found


def _mean(runs: Mapping[int, Run], figure: Callable[[Run], float]) -> dict[str, Any] | None:
    return _interval([figure(run) for run in runs.values()])


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean with its t-interval over seeds; None where no seed has the figure."""
    known = [value for value in values if math.isfinite(value)]
    return t_interval(known).to_json() if known else None


def _differences(comparison: Comparison, arm: str) -> dict[str, Any]:
    """What is set otherwise than in the baseline (or, without one, than in the first arm there is)."""
    of = {name: run.settings for (name, _), run in reversed(list(comparison.runs.items()))}
    reference = of.get(comparison.baseline, comparison.any_run.settings)
    mine = of.get(arm)
    if mine is None:
        return {}
    names = [name for name in reference if name in mine and name != "seed" and not of_the_place(name)]
    return {name: mine[name] for name in names if mine[name] != reference[name] and name[:4] != "log."}


def _common_settings(comparison: Comparison) -> dict[str, Any]:
    """Settings that all runs have alike."""
    every = [run.settings for run in comparison.runs.values()]
    names = [name for name in every[0] if name != "seed" and not of_the_place(name)]
    return {name: every[0][name] for name in names if all(each.get(name) == every[0][name] for each in every)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
