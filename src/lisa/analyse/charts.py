"""The figures as pictures: over the layers, and the similarity of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lisa.common.files import atomic_write

_PANELS = (
    ("disentanglement", ("disentanglement",)),
    ("R2 of the condition", ("r2", "condition")),
    ("R2 of the noise", ("r2", "noise")),
    ("R2 of the caption", ("r2", "caption")),
    ("R2 of the likelihood score", ("r2", "score")),
    ("total index of noise", ("total", "noise")),
)
_COLOURS = {"run": "#2a6f97", "against": "#c8553d"}


def draw_layers(path: Path, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """One panel per figure, over the layers, means over the noise levels, with 95% intervals.

    Args:
        path: of the PNG.
        rows: ``by_layer`` of the result.
        names: ``run`` (and ``against``) -> what to call it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(10.5, 0.9 * len(rows)), 5.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, (title, keys) in zip(axes.flat, _PANELS, strict=True):
        for side, name in names.items():
            _draw_line(axis, [_at(row[side], keys) for row in rows], name, _COLOURS[side])
        axis.axhline(0, color="grey", linewidth=0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(rows)), [row["layer"] for row in rows], rotation=45, fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("share of the variance", fontsize=9)
    if len(names) > 1:
        axes[0, 0].legend(fontsize=8, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_similarity(
    path: Path, matrix: Sequence[Sequence[float]], layers: Sequence[str], names: Mapping[str, str]
) -> None:
    """CKA of every layer (rows: of the run) with every layer of the other run, or of the same."""
    from matplotlib.figure import Figure

    side = 2.2 + 0.34 * len(layers)
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(np.array(matrix), vmin=0, vmax=1, cmap="viridis")
    axis.set_xticks(range(len(layers)), layers, rotation=60, fontsize=8)
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set_ylabel(names["run"], fontsize=9)
    axis.set_xlabel(names.get("against", names["run"]), fontsize=9)
    axis.set_title("linear CKA", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_line(axis: Any, intervals: Sequence[Any], name: str, colour: str) -> None:
    value, low, high = (
        [getattr(interval, end) if np.isfinite(getattr(interval, end)) else np.nan for interval in intervals]
        for end in ("value", "low", "high")
    )
    places = range(len(intervals))
    axis.plot(places, value, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
    axis.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)


def _at(figures: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = figures
    for key in keys:
        value = value[key]
    return value
