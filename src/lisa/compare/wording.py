"""The figures of a comparison in words and cells, the same for the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
#: What is shown large, and what stands small beneath it.
Cell = tuple[str, str]
NOTHING: Cell = ("-", "")
#: Seeds from which the interval of a speed-up is shown and concluded from: that of two is wider than any picture.
INTERVAL_FROM = 3


def interval(value: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> Cell:
    """``("0.312", "[0.287, 0.340]")``; with a single seed no interval."""
    if value is None or value["value"] is None:
        return NOTHING
    sign = "+" if signed else ""
    ends = [value["low"], value["high"]]
    known = None not in ends
    return (
        f"{value['value']:{sign}.{digits}f}",
        f"[{ends[0]:{sign}.{digits}f}, {ends[1]:{sign}.{digits}f}]" if known else "",
    )


def speed(value: Mapping[str, Any] | None, baseline: str) -> Cell:
    """A speed-up: how many times sooner, or what is known where some seeds never got there."""
    if value is None:
        return NOTHING
    count, ours, theirs = len(value["seeds"]), len(value["never"]), len(value["baseline_never"])
    if ours == count:
        return "never", f"on average under {_up(value['value'])}" if value["bound"] == "at most" else ""
    if value["bound"] == "at most":
        most = max(value["per_seed"])
        return f"≤ {_up(value['value'])}", f"never in {ours} of {count} seeds; none above {_up(most)}"
    if value["bound"] == "at least":
        least = min(value["per_seed"])
        return f"≥ {_down(value['value'])}", f"{baseline} never in {theirs} of {count}; none below {_down(least)}"
    if value["bound"] == "unknown":
        return "?", f"never in {ours} of {count} seeds, {baseline} in {theirs}"
    if 1 < count < INTERVAL_FROM:
        return interval(value, 2)[0], f"{count} seeds: no interval"
    return interval(value, 2)


def _up(bound: float) -> str:
    """An upper bound of two digits is rounded up, a lower one down: what is told must hold."""
    return f"{math.ceil(round(bound * 100, 6)) / 100:.2f}"


def _down(bound: float) -> str:
    return f"{math.floor(round(bound * 100, 6)) / 100:.2f}"


def speed_of(row: Row, axis: str, share: str, baseline: str) -> Cell:
    """The cell of an arm's speed-up to ``share``, in ``steps`` or ``seconds``; the baseline's own is 1."""
    if row["speedups"] is None:
        return NOTHING
    return ("1", "") if row["arm"] == baseline else speed(row["speedups"][axis][share], baseline)


def onset(value: Mapping[str, Any] | None) -> Cell:
    """The step of the onset, mean over seeds."""
    if value is None:
        return NOTHING
    if value["value"] is None:
        return "never", ""
    if value["never"]:
        return f"≥ {value['value']:.0f}", f"never in {len(value['never'])} of {len(value['per_seed'])} seeds"
    return interval(value, 0)


def amount(value: float | None, digits: int = 0) -> str:
    """A single figure; what was not reached is ``never``."""
    return "never" if value is None else f"{value:.{digits}f}"


def metrics_of(summary: Mapping[str, Any], condition: str) -> dict[str, str]:
    """What else was judged by a condition's protocol: name -> heading, with the unit and which way is better."""
    found: dict[str, str] = {}
    for row in summary["arms"]:
        fidelity = row["fidelities"].get(condition, {})
        for name, figure in fidelity.get("metrics", {}).items():
            if name != fidelity["metric"]:
                unit = f", {figure['unit']}" if figure["unit"] else ""
                found[name] = f"{name} ({'higher' if figure['higher_is_better'] else 'lower'} is better{unit})"
    return found


def settings(values: Mapping[str, Any]) -> str:
    """``align.weight=1, align.layer=[down.5, mid]``."""
    return ", ".join(f"{name}={setting(value)}" for name, value in values.items())


def setting(value: Any) -> str:
    """A value as it is written in YAML."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "(empty)"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting(item) for item in value) + "]"
    return str(value)


def heading(summary: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    condition = summary["condition"]
    names = condition if isinstance(condition, str) else " + ".join(condition)
    seeds = len(summary["seeds"])
    return f"{names} on {summary['model']}, {summary['steps']} steps, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def verdict(row: Row, summary: Mapping[str, Any]) -> str:
    """Whether an arm learns sooner than the baseline, and what it ends with, in two sentences at most."""
    base, share = summary["baseline"], f"{summary['levels'][0]:.0%}"
    if row["speedups"] is None:
        return "Nothing can be said about its speed yet."
    in_steps, in_time = (row["speedups"][axis][str(summary["levels"][0])] for axis in ("steps", "seconds"))
    goal = f"{share} of {base}'s plateau"
    found = f"{plainly(speed(in_steps, base))} in steps, {plainly(speed(in_time, base))} in training time."
    first = f"{_sooner(in_steps, in_time, goal)}: speed-up {found}"
    if len(in_steps["never"]) == len(in_steps["seeds"]):
        first = f"It never reaches {goal}."
    elif in_steps["bound"]:
        who = {"at most": "It does", "at least": f"{base} does"}.get(in_steps["bound"], f"It and {base} do")
        found, seeds = speed(in_steps, base)
        first = f"{who} not reach {goal} in every seed: {found} in steps ({seeds})."
    gain = row["against_baseline"]["final_gain"]
    if gain is None or gain["value"] is None:
        return first
    return (
        f"{first} Control gain at the end, against {base}: {plainly(interval(gain, 3, signed=True))}{_differs(gain)}."
    )


def _sooner(in_steps: Mapping[str, Any], in_time: Mapping[str, Any], goal: str) -> str:
    """By both intervals: what is sooner in steps can be later in training time, since alignment has its passes."""
    steps, time = _side_of_one(in_steps), _side_of_one(in_time)
    if steps is None:
        count = len(in_steps["seeds"])
        return f"{'One seed tells' if count == 1 else f'{count} seeds tell'} no interval. To {goal}"
    untold = "no difference that these seeds can tell"
    if time in (steps, None):
        return f"{steps} at {goal}" if steps else f"No difference at {goal} that these seeds can tell"
    if not steps:
        return f"At {goal} {untold} in steps, {time.lower()} in training time"
    return f"{steps} at {goal} in steps, {time.lower() or untold} in training time"


def _side_of_one(value: Mapping[str, Any]) -> str | None:
    """On which side of 1 the interval of a speed-up lies; empty: on both; None: there is none, or of few seeds."""
    low, high = value["low"], value["high"]
    if low is None or high is None or len(value["seeds"]) < INTERVAL_FROM:
        return None
    return "Sooner" if low > 1 else "Later" if high < 1 else ""


def _differs(value: Mapping[str, Any]) -> str:
    low, high = value["low"], value["high"]
    if low is None or high is None:
        return ""
    return ", better" if low > 0 else ", worse" if high < 0 else ", no difference that these seeds can tell"


def plainly(cell: Cell) -> str:
    """A cell in a line: ``0.312 [0.287, 0.340]``, ``≥ 2.70 (none below 2.28)``."""
    value, beneath = cell
    return f"{value} {beneath}" if beneath.startswith("[") else f"{value} ({beneath})" if beneath else value
