"""Sample grids of all arms at equal steps, cut into columns and put side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lisa.common.runfolder import CONTROLLED
from lisa.compare.aligned import Comparison
from lisa.compare.runs import Grid, Run

_STEPS = 4  # rows of pictures in a report
_WIDEST = 160  # pixels of a column: a report is to be sent around


@dataclass(frozen=True)
class Column:
    """One column of pictures, one below the other: its title and the picture as a data URI."""

    title: str
    uri: str


@dataclass(frozen=True)
class Row:
    """What all arms draw after ``step`` steps."""

    step: int
    columns: Sequence[Column]


@dataclass(frozen=True)
class SideBySide:
    """Sample grids of one seed, at steps that all arms have; ``rows`` is empty where there are none.

    ``damaged``: files that cannot be read, whose steps are left out.
    """

    seed: int
    arms: Sequence[str]
    rows: Sequence[Row]
    damaged: Sequence[str] = ()


def side_by_side(comparison: Comparison) -> SideBySide:
    """The first seed that most arms have, at up to four steps spread over those that all of its runs have drawn at."""
    by_seed = {
        seed: [run for arm in comparison.arms if (run := comparison.of(arm).get(seed)) is not None and run.samples]
        for seed in comparison.seeds
    }
    seed = max(by_seed, key=lambda number: len(by_seed[number]))  # the first of the largest
    runs = by_seed[seed]
    common: set[int] = set.intersection(*(_drawn(run) for run in runs)) if runs else set()
    rows, damaged = [], []
    for step in _spread(sorted(common), _STEPS):
        try:
            rows.append(Row(step, _columns(runs, step)))
        except _Damaged as error:
            damaged.append(str(error))
    return SideBySide(seed, [run.arm for run in runs], rows, damaged)


class _Damaged(Exception):
    """A picture that cannot be read; its path."""


def _drawn(run: Run) -> set[int]:
    return {step for step, grid in run.samples.items() if grid.path.is_file()}


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the values, evenly, the last one among them."""
    if len(values) <= most:
        return list(values)
    return [values[round((i + 1) * len(values) / most) - 1] for i in range(most)]


def _columns(runs: Sequence[Run], step: int) -> list[Column]:
    """Condition, frozen network alone, each arm, truth; whole grids where their layout is not known."""
    grids = {run.arm: run.samples[step] for run in runs}
    if not all(CONTROLLED in grid.columns for grid in grids.values()):
        return [Column(arm, _uri(_open(grid))) for arm, grid in grids.items()]
    first = next(iter(grids.values()))
    columns = []
    for title in first.columns:
        if title == CONTROLLED:
            columns += [Column(arm, _uri(_cut(grid, title))) for arm, grid in grids.items()]
        else:
            columns.append(Column(title, _uri(_cut(first, title))))
    return columns


def _open(grid: Grid) -> list[Any]:
    """The pictures in a file: one, or those of an animation; each tells how long it is shown."""
    from PIL import Image, ImageSequence

    try:
        with Image.open(grid.path) as file:
            pictures = []
            for frame in ImageSequence.Iterator(file):
                picture = frame.convert("RGB")
                picture.info["duration"] = frame.info.get("duration", 0)
                pictures.append(picture)
            return pictures
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # cut short, or sizes that are none
        raise _Damaged(grid.path) from None


def _cut(grid: Grid, title: str) -> list[Any]:
    return [_cut_one(picture, grid, title) for picture in _open(grid)]


def _cut_one(picture: Any, grid: Grid, title: str) -> Any:
    pitch = (picture.width + grid.gap) / len(grid.columns)
    left = round(grid.columns.index(title) * pitch)
    cut = picture.crop((left, grid.head, left + round(pitch) - grid.gap, picture.height))
    cut.info["duration"] = picture.info["duration"]
    return cut


def _uri(pictures: Sequence[Any]) -> str:
    """PNG, or JPEG where it had to be made smaller; WebP where it moves."""
    buffer, kind = io.BytesIO(), "PNG"
    durations = [picture.info["duration"] for picture in pictures]
    if pictures[0].width > _WIDEST:
        size = (_WIDEST, round(pictures[0].height * _WIDEST / pictures[0].width))
        pictures, kind = [picture.resize(size) for picture in pictures], "JPEG"
    moving: dict[str, Any] = {}
    if len(pictures) > 1:
        kind = "WEBP"
        moving = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0, "lossless": True}
    pictures[0].save(buffer, format=kind, **moving)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
