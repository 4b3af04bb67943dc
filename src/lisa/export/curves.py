"""The curves of a model card: what the held-out readings were over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lisa.common.files import atomic_write

_PANELS = {"control_gain": "control gain", "gap": "condition gap", "decoder_r2": "decoder R2"}
_COLOUR = "#2a6f97"


def draw_curves(
    path: Path, readings: Sequence[Mapping[str, Any]], *, onset: int | None, fidelities: Sequence[Mapping[str, Any]]
) -> None:
    """Write a picture with one panel per figure, each with its 95% intervals.

    Args:
        path: of the PNG.
        readings: the ``held_out`` events of a run, in order; what has no value in any of them gets no panel.
        onset: the step at which control set in; a dotted line.
        fidelities: of the run's summary, one per condition that a protocol judges.
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
    for fidelity, axis in zip(fidelities, axes[len(names) :], strict=True):
        _draw_fidelity(axis, fidelity)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_reading(axis: Any, name: str, readings: Sequence[Mapping[str, Any]]) -> None:
    known = [reading for reading in readings if reading[name]["value"] is not None]
    steps = [reading["step"] for reading in known]
    value, low, high = (
        [float("nan") if reading[name][end] is None else reading[name][end] for reading in known]
        for end in ("value", "low", "high")
    )
    axis.plot(steps, value, color=_COLOUR, marker="o", markersize=2.5, linewidth=1.2)
    axis.fill_between(steps, low, high, color=_COLOUR, alpha=0.2, linewidth=0)
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.set_title(_PANELS[name], fontsize=10)
    axis.set_xlabel("step", fontsize=8)


def _draw_fidelity(axis: Any, fidelity: Mapping[str, Any]) -> None:
    """Without and with the side network, at the end."""
    sides = ("without", "with")
    for place, side in enumerate(sides):
        value, low, high = (fidelity[side][end] for end in ("value", "low", "high"))
        bars = None if low is None or high is None else [[value - low], [high - value]]
        axis.errorbar([place], [value], yerr=bars, fmt="o", color=_COLOUR, capsize=4)
    axis.set_xticks(range(len(sides)), [f"{side} control" for side in sides])
    axis.set_xlim(-0.5, len(sides) - 0.5)
    unit = f", {fidelity['unit']}" if fidelity["unit"] else ""
    axis.set_title(f"fidelity ({fidelity['metric']}{unit})", fontsize=10)
