"""Pictures of an analysis: features over their conditions, decoded likelihood scores beside true residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lisa.analyse.maps import principal_maps, signed_maps
from lisa.build.analysis.decoded import DRAWS, Scores
from lisa.build.analysis.features import Encoded, Features
from lisa.data.samples import ByteArray, unstack_pictures
from lisa.sample.grids import labelled_grid, save_png

_COLUMNS = 8  # layers in a picture, at most
_WIDTH = 120  # pixels of a column, at least


def draw_maps(path: Path, maps: Features, samples: Encoded, aligned: Sequence[str]) -> list[str]:
    """A row per sample: its condition, and principal components of some layers; returns which."""
    chosen = _spread(list(maps), aligned)
    conditions, titles = _conditions(samples, len(next(iter(maps.values()))))
    size = conditions[0][0].shape[:2]
    columns = [principal_maps(maps[layer], (size[0], size[1])) for layer in chosen]
    rows = [[*shown, *(column[row] for column in columns)] for row, shown in enumerate(conditions)]
    marked = [f"{layer}*" if layer in aligned else layer for layer in chosen]
    save_png(labelled_grid(rows, [*titles, *marked], scale=_scale(size[1])), path)
    return chosen


def draw_scores(path: Path, scores: Scores, samples: Encoded) -> None:
    """A row per sample: condition, residual of one noise and of many, decoded score of one noise and of many."""
    conditions, titles = _conditions(samples, len(scores.residual))
    size = conditions[0][0].shape[:2]
    given = [scores.mean_residual, scores.mean_decoded, scores.residual, scores.decoded]
    mean_residual, mean_decoded, residual, decoded = signed_maps(given, (size[0], size[1]))
    rows = [
        [*shown, *(column[row] for column in (residual, mean_residual, decoded, mean_decoded))]
        for row, shown in enumerate(conditions)
    ]
    titles = [*titles, "residual", f"mean of {DRAWS}", "decoded", f"mean of {DRAWS}"]
    save_png(labelled_grid(rows, titles, scale=_scale(size[1])), path)


def _conditions(samples: Encoded, count: int) -> tuple[list[list[ByteArray]], list[str]]:
    """Of the first samples, every condition picture; and the titles of their columns."""
    shown = [unstack_pictures(np.ascontiguousarray(picture)) for picture in samples.pictures[:count]]
    number = len(shown[0])
    return shown, ["condition"] if number == 1 else [f"condition {place}" for place in range(1, number + 1)]


def _spread(layers: list[str], aligned: Sequence[str]) -> list[str]:
    """At most :data:`_COLUMNS` layers, evenly spread, the aligned ones among them."""
    if len(layers) <= _COLUMNS:
        return layers
    own = [layer for layer in layers if layer in aligned][:_COLUMNS]
    rest = [layer for layer in layers if layer not in own]
    places = np.linspace(0, len(rest) - 1, _COLUMNS - len(own)).round().astype(int)
    picked = {*own, *(rest[place] for place in places)}
    return [layer for layer in layers if layer in picked]


def _scale(width: int) -> int:
    return max(1, -(-_WIDTH // width))
