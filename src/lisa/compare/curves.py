"""Curves of all arms with their bands over seeds, and the speed-ups with their intervals, as pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lisa.common.files import atomic_write
from lisa.common.intervals import t_interval
from lisa.compare import wording
from lisa.compare.aligned import Comparison
from lisa.compare.results import aligned
from lisa.compare.runs import Curve, Run
from lisa.compare.speed_up import ONSET_SHARE

# Okabe and Ito's colours, which colour-blind readers can tell apart; the baseline is black.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# As matplotlib has them, and in words; the next where the colours are used up.
_DASHES = {"-": "", "--": "dashed", "-.": "dash-dotted", ":": "dotted"}
_SIZE = (4.3, 3.1)  # inches of a panel
_AXES = {"steps": "step", "seconds": "training time (s)"}


@dataclass(frozen=True)
class Panel:
    """One picture of the report: its title, and what draws it on axes of matplotlib."""

    title: str
    draw: Callable[[Any], None]


def panels(comparison: Comparison, summary: Mapping[str, Any]) -> list[Panel]:
    """Control gain, condition gap and fidelity, each over steps and over training time; then the speed-ups."""
    level = (summary["plateau"] or {}).get("level") or 0.0
    marks = {f"{share:.0%} of {comparison.baseline}": share * level for share in summary["levels"] if level > 0}
    onset = {"onset": ONSET_SHARE * level} if level > 0 else {}
    figures: list[tuple[str, str, Callable[[Run], Curve], Mapping[str, float]]] = [
        ("control gain", "control gain", lambda run: run.gain, marks),
        ("condition gap", "condition gap", lambda run: run.gap, onset),
    ]
    figures += [
        (f"fidelity to {name}", _metric(summary, name), _fidelity_to(name), {})
        for name in judged_while_training(comparison)
    ]
    found = [
        Panel(
            f"{title} over {_AXES[axis].partition(' (')[0]}s".replace("times", "time"),
            _curves(comparison, curve, axis, label, lines),
        )
        for title, label, curve, lines in figures
        for axis in _AXES
    ]
    for axis in _AXES:
        rows = [row for row in summary["arms"] if row["arm"] != comparison.baseline and row["speedups"]]
        if rows:
            words = {"steps": "in steps", "seconds": "in training time"}
            found.append(Panel(f"speed-up {words[axis]}", _forest(rows, axis, summary["levels"])))
    return found


def judged_while_training(comparison: Comparison) -> list[str]:
    """The conditions that there are curves of fidelity to."""
    return list(dict.fromkeys(name for run in comparison.runs.values() for name in run.fidelity))


def to_svg(panel: Panel, *, legend: bool) -> str:
    """A panel as SVG for a page, the same text for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": panel.title, "font.size": 9}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        _draw(figure.add_subplot(), panel, legend=legend)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save_png(path: Path, chosen: Sequence[Panel]) -> None:
    """All panels in one picture, for places that show no SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = 2
    rows = -(-len(chosen) // columns)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(columns * _SIZE[0], rows * _SIZE[1]), dpi=110, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for i, (axis, panel) in enumerate(zip(axes, chosen, strict=False)):
            _draw(axis, panel, legend=i == 0)
        for axis in axes[len(chosen) :]:
            axis.set_visible(False)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png")


def colour(place: int) -> str:
    """Of the arm at ``place`` in the comparison, the same in every panel."""
    return _COLOURS[place % len(_COLOURS)]


def dash(place: int) -> tuple[str, str]:
    """How the line of the arm at ``place`` is drawn, for matplotlib and in words (empty: through)."""
    return list(_DASHES.items())[place // len(_COLOURS) % len(_DASHES)]


def _draw(axis: Any, panel: Panel, *, legend: bool) -> None:
    panel.draw(axis)
    axis.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False, loc="best")


def _metric(summary: Mapping[str, Any], condition: str) -> str:
    """What fidelity to a condition is measured by, and its unit; fidelity alone before any run has ended."""
    found = next((row["fidelities"][condition] for row in summary["arms"] if condition in row["fidelities"]), None)
    if found is None:
        return "fidelity"
    return f"{found['metric']} ({found['unit']})" if found["unit"] else str(found["metric"])


def _fidelity_to(name: str) -> Callable[[Run], Curve]:
    empty = Curve(np.array([]), np.array([]))
    return lambda run: run.fidelity.get(name, empty)


def _curves(
    comparison: Comparison, curve: Callable[[Run], Curve], x: str, label: str, lines: Mapping[str, float]
) -> Callable[[Any], None]:
    """Each seed thin, the mean over seeds thick, its interval as a band; thresholds as dotted lines."""

    def draw(axis: Any) -> None:
        low, high = 0.0, max([1e-3, *lines.values()])
        for place, arm in enumerate(comparison.arms):
            runs = [run for run in comparison.of(arm).values() if run.state == "finished" and len(curve(run))]
            steps, values = aligned([curve(run) for run in runs])
            if not len(steps):
                continue
            style = {"color": colour(place), "linestyle": dash(place)[0]}
            at = steps if x == "steps" else np.mean([run.seconds(steps) for run in runs], axis=0)
            for row in values:
                axis.plot(at, row, color=colour(place), linewidth=0.5, alpha=0.35)
            axis.plot(at, values.mean(axis=0), linewidth=1.7, label=arm, **style)
            if len(values) >= wording.INTERVAL_FROM:
                ends = [t_interval(column) for column in values.T]
                band = [each.low for each in ends], [each.high for each in ends]
                axis.fill_between(at, *band, color=colour(place), alpha=0.13, linewidth=0)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        margin = 0.06 * (high - low)
        axis.set_ylim(low - margin, high + margin)
        for place, (name, height) in enumerate(lines.items()):
            axis.axhline(height, color="#777777", linestyle=":", linewidth=0.9)
            # Levels are named where curves are still low, the threshold of the onset where they are high; neighbours
            # beside each other, since 95 and 80% of a low plateau lie close.
            side, end = ("right", 1) if name == "onset" else ("left", 0.01 + 0.2 * (place % 2))
            axis.annotate(name, (end, height), xycoords=("axes fraction", "data"), ha=side, va="bottom", fontsize=7)
        axis.set_xlabel(_AXES[x], fontsize=9)
        axis.set_ylabel(label, fontsize=9)

    return draw


def _forest(rows: Sequence[Mapping[str, Any]], x: str, levels: Sequence[float]) -> Callable[[Any], None]:
    """One line per arm and level: the value and its interval; an arrow alone where the value is a bound."""

    def draw(axis: Any) -> None:
        height, ticks, ends = 0.0, [], [0.5, 2.0]
        for place, row in enumerate(rows, start=1):
            for share in levels:
                height -= 1
                ticks.append((height, f"{row['arm']}, {share:.0%}"))
                ends += _interval_line(axis, row["speedups"][x][str(share)], height, colour(place))
            height -= 0.5
        axis.axvline(1, color="#777777", linewidth=0.9)
        axis.set_xscale("log")
        axis.set_ylim(height, -0.25)
        axis.set_xlim(max(min(ends) / 1.15, 0.02), min(max(ends) * 1.15, 50))
        fine = (0.7, 1.5, 3) if max(ends) / min(ends) < 30 else ()  # their labels would run into the others'
        places = sorted((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, *fine))
        shown = [tick for tick in places if min(ends) <= tick <= max(ends)]
        axis.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axis.set_xticks([], minor=True)
        axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
        axis.set_xlabel("times sooner than the baseline (right: sooner)", fontsize=9)

    return draw


def _interval_line(axis: Any, speed: Mapping[str, Any], height: float, shade: str) -> list[float]:
    value, low, high = speed["value"], speed["low"], speed["high"]
    if value is None or len(speed["never"]) == len(speed["seeds"]):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.annotate("never", (1, height), color=shade, ha="center", va="center", fontsize=8, bbox=box)
        return []
    if speed["bound"] == "unknown":
        axis.annotate("?", (value, height), color=shade, ha="center", va="center", fontsize=8)
        return [value]
    axis.plot([value], [height], marker={"at most": "<", "at least": ">"}.get(speed["bound"], "o"), color=shade)
    if low is None or high is None or len(speed["seeds"]) < wording.INTERVAL_FROM:
        return [value]
    axis.plot([low, high], [height, height], color=shade, linewidth=1.4)
    return [value, low, high]
