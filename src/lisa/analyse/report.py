"""The result in words, tables and pictures, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lisa.analyse.readings import TARGETS
from lisa.common.intervals import Interval


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report; pictures lie beside it."""
    return "\n\n".join([*_head(result), *_tables(result), *_pictures(result), *_meaning(result)]) + "\n"


def verdict(result: Mapping[str, Any]) -> str:
    """The one line that answers whether the run's features are more disentangled than the other's, or what they are."""
    figure = result["overall"]["run"]["disentanglement"]
    if result["against"] is None:
        return f"disentanglement over all layers and noise levels: {show(figure)}"
    difference = result["overall"]["difference"]["disentanglement"]
    word = "more" if difference.low > 0 else "less" if difference.high < 0 else "neither more nor less"
    return (
        f"{result['run']} is {word} disentangled than {result['against']}: {show(difference, signed=True)} over all "
        f"layers and noise levels ({figure.value:.3f} against "
        f"{result['overall']['against']['disentanglement'].value:.3f})"
    )


def show(interval: Interval, *, signed: bool = False, digits: int = 3) -> str:
    """``0.312 [0.287, 0.340]``; a dash where nothing is known."""
    if not math.isfinite(interval.value):
        return "-"
    sign = "+" if signed else ""
    ends = [interval.low, interval.high]
    tail = f" [{ends[0]:{sign}.{digits}f}, {ends[1]:{sign}.{digits}f}]" if all(map(math.isfinite, ends)) else ""
    return f"{interval.value:{sign}.{digits}f}{tail}"


def _head(result: Mapping[str, Any]) -> list[str]:
    title = f"# What the side features of {result['run']} encode"
    if result["against"] is not None:
        title += f", against {result['against']}"
    levels = ", ".join(f"{level:.0f}" for level in result["levels"])
    facts = (
        f"Main network {result['model']}, pair {result['pair']}, condition {result['condition']}. "
        f"{result['samples']} held-out samples, {result['pairs']} pairs of them for the indices; probes fitted on "
        f"{result['fit_samples']} training samples. Noise levels {levels} of 1000. Seed {result['seed']}. "
        "Intervals are 95%."
    )
    aligned = "; ".join(
        f"{role}: {', '.join(layers) if layers else 'no layer'} aligned" for role, layers in result["aligned"].items()
    )
    lines = [title, facts, f"{aligned[0].upper()}{aligned[1:]}.", f"**{result['verdict']}**"]
    if result["only_in_one_run"]:
        lines.append(f"Left out, as only one of the runs has them: {', '.join(result['only_in_one_run'])}.")
    return lines


def _tables(result: Mapping[str, Any]) -> list[str]:
    found = ["## Means over the noise levels", *_group(result["by_layer"], result)]
    found += ["## By noise level", *_group(result["by_level"], result)]
    return [*found, *_decoded(result)]


def _group(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    sides = ["run", *(["against", "difference"] if result["against"] is not None else [])]
    levelled = "level" in rows[0]
    heads = ["layer", *(["t"] if levelled else [])]
    parts = []
    for side in sides:
        names = ["disentanglement", *[f"R2 {target}" for target in TARGETS]]
        lines = []
        for row in rows:
            figures, signed = row[side], side == "difference"
            cells = [figures["disentanglement"], *[figures["r2"][target] for target in TARGETS]]
            lines.append([*_place(row), *[show(cell, signed=signed) for cell in cells]])
        parts += [f"### {side}", _table([*heads, *names], lines)]
        if side != "difference":
            parts.append(_indices(rows, side, heads))
    if len(sides) > 1:
        values = [[*_place(row), _cka(row["cka"])] for row in rows]
        parts += ["### similarity of both", _table([*heads, "linear CKA"], values)]
    return parts


def _indices(rows: Sequence[Mapping[str, Any]], side: str, heads: Sequence[str]) -> str:
    factors = list(rows[0][side]["first"])
    names = [f"{name} ({kind})" for name in factors for kind in ("alone", "total")]
    lines = [
        [*_place(row), *[_number(row[side][kind][name].value) for name in factors for kind in ("first", "total")]]
        for row in rows
    ]
    return "Sobol indices of each input:\n\n" + _table([*heads, *names], lines)


def _place(row: Mapping[str, Any]) -> list[str]:
    return [row["layer"], *([f"{row['level']:.0f}"] if "level" in row else [])]


def _cka(value: Any) -> str:
    return show(value) if isinstance(value, Interval) else _number(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _decoded(result: Mapping[str, Any]) -> list[str]:
    lines, notes = [], []
    for role, found in result["decoded"].items():
        if "left_out" in found:
            notes.append(f"No decoded score of {result[role]}: {found['left_out']}.")
            continue
        lines += [[role, f"{row['level']:.0f}", show(row["one draw"]), show(row["mean"])] for row in found["by_level"]]
    heads = ["run", "t", "cosine, one noise", f"cosine, mean of {result['noise_draws']}"]
    table = [_table(heads, lines)] if lines else []
    return ["## Decoded likelihood score against the true residual", *table, *notes]


def _pictures(result: Mapping[str, Any]) -> list[str]:
    return ["## Pictures", *[f"![{text}]({name})\n\n*{text}*" for name, text in result["pictures"].items()]]


def _meaning(result: Mapping[str, Any]) -> list[str]:
    return ["## What the figures are", "\n".join(f"- **{k}**: {v}." for k, v in result["definitions"].items())]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
