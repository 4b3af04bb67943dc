"""The curves of a model card: what the held-out readings were over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lisa.common.files import atomic_write

_PANELS = {"control_gain": "control gain", "gap": "condition gap", "decoder_r2": "decoder R2"}
_COLOUR = "#2a6f97"


def draw_curves(
    path: Path,
    readings: Sequence[Mapping[str, Any]],
    *,
    onset: int | None,
    fidelities: Mapping[str, Mapping[str, Any]],
    fidelity_readings: Sequence[Mapping[str, Any]] = (),
    steps: int = 0,
) -> None:
    """Write a picture with one panel per figure, each with its 95% intervals.

    Args:
        path: of the PNG.
        readings: the ``held_out`` events of a run, in order; what has no value in any of them gets no panel.
        onset: the step at which control set in; a dotted line.
        fidelities: of the run's summary, by condition.
        fidelity_readings: the ``fidelity`` events of the run, in order; without any, the end alone is shown.
        steps: of the training; where the end lies.
    """
    from matplotlib.figure import Figure

    names = [name for name in _PANELS if any(reading[name]["value"] is not None for reading in readings)]
    count = len(names) + len(fidelities)
    figure = Figure(figsize=(3.2 * count, 2.8), dpi=120, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for name, axis in zip(names, axes, strict=False):
        _draw_reading(axis, name, readings)
        if onset is not None:
            axis.axvline(onset, color="black", linestyle=":", linewidth=1)
            axis.annotate(f" onset {onset}", (onset, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    for (condition, fidelity), axis in zip(fidelities.items(), axes[len(names) :], strict=True):
        curve = [{"step": reading["step"], **reading[condition]} for reading in fidelity_readings]
        if curve:
            _draw_fidelity_curve(axis, fidelity, curve, steps)
        else:
            _draw_fidelity(axis, fidelity)
        unit = f", {fidelity['unit']}" if fidelity["unit"] else ""
        axis.set_title(f"fidelity ({fidelity['metric']}{unit})", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_reading(axis: Any, name: str, readings: Sequence[Mapping[str, Any]]) -> None:
    _draw_band(axis, [{"step": reading["step"], **reading[name]} for reading in readings])
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.set_title(_PANELS[name], fontsize=10)


def _draw_band(axis: Any, curve: Sequence[Mapping[str, Any]]) -> None:
    """Value and interval over ``step``, where there is a value."""
    known = [point for point in curve if point["value"] is not None]
    value, low, high = (
        [float("nan") if point[end] is None else point[end] for point in known] for end in ("value", "low", "high")
    )
    steps = [point["step"] for point in known]
    axis.plot(steps, value, color=_COLOUR, marker="o", markersize=2.5, linewidth=1.2)
    axis.fill_between(steps, low, high, color=_COLOUR, alpha=0.2, linewidth=0)
    axis.set_xlabel("step", fontsize=8)


def _draw_fidelity_curve(
    axis: Any, fidelity: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], steps: int
) -> None:
    """The readings, the end with its own samples, and the level without control."""
    _draw_band(axis, curve)
    _draw_point(axis, steps, fidelity["with"])
    axis.set_xlim(left=0)
    axis.axhline(fidelity["without"]["value"], color="grey", linestyle="--", linewidth=0.8)
    axis.annotate(
        "without",
        (1, fidelity["without"]["value"]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="grey",
    )


def _draw_fidelity(axis: Any, fidelity: Mapping[str, Any]) -> None:
    """Without and with the side network, at the end."""
    sides = ("without", "with")
    for place, side in enumerate(sides):
        _draw_point(axis, place, fidelity[side])
    axis.set_xticks(range(len(sides)), [f"{side} control" for side in sides])
    axis.set_xlim(-0.5, len(sides) - 0.5)


def _draw_point(axis: Any, place: float, interval: Mapping[str, Any]) -> None:
    value, low, high = (interval[end] for end in ("value", "low", "high"))
    bars = None if low is None or high is None else [[value - low], [high - value]]
    axis.errorbar([place], [value], yerr=bars, fmt="o", color=_COLOUR, capsize=4)
