"""Clips beside clips: contact sheets, which show every frame at once, and animations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lisa.common.errors import LisaError
from lisa.common.files import atomic_write
from lisa.data.samples import ByteArray
from lisa.sample.grids import labelled_grid

#: Columns of clips by title: as many clips in each, uint8 (F, H, W, 3) all of one shape.
Columns = Mapping[str, Sequence[ByteArray]]

#: Frames per second of clips that tell none.
RATE = 8.0
_FORMATS = {".webp": "WEBP", ".gif": "GIF"}
_GAP = 1  # white pixels between the frames of a strip
_SHORTEST = 20  # milliseconds: GIF counts in hundredths, and browsers slow down what is faster


def contact_sheet(columns: Columns, *, scale: int = 2) -> Image.Image:
    """One row per clip, with its frames side by side in each of the titled columns.

    Laid out as :func:`lisa.sample.grids.labelled_grid`, so that :func:`lisa.sample.grids.grid_layout` describes it.
    """
    return labelled_grid([[strip(clip) for clip in row] for row in _rows(columns)], list(columns), scale=scale)


def animation(columns: Columns, *, scale: int = 2) -> list[Image.Image]:
    """The same columns, one row per clip, frame by frame: each a picture of the grid at that time."""
    rows = _rows(columns)
    count = len(rows[0][0])
    return [
        labelled_grid([[clip[n] for clip in row] for row in rows], list(columns), scale=scale) for n in range(count)
    ]


def strip(clip: ByteArray) -> ByteArray:
    """The frames of a clip (F, H, W, 3) from left to right, a thin white line between them: (H, F W + F - 1, 3)."""
    frames, height, width = clip.shape[:3]
    sheet = np.full((height, frames, width + _GAP, 3), 255, np.uint8)
    sheet[:, :, :width] = clip.transpose(1, 0, 2, 3)
    return sheet.reshape(height, -1, 3)[:, :-_GAP]


def save_animation(frames: Sequence[Image.Image], path: Path, rate: float | None = None) -> Path:
    """Write an animation that repeats, whole or not at all.

    Args:
        frames: its pictures.
        path: ``.webp`` (to the last bit) or ``.gif`` (of 256 colours per frame).
        rate: pictures per second; None: :data:`RATE`.

    Raises:
        LisaError: another suffix.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise LisaError(f"animations cannot be written as {path.suffix!r} ({path.name!r})", choices=list(_FORMATS))
    options = {"lossless": True, "minimize_size": False} if kind == "WEBP" else {"disposal": 1}
    duration = max(_SHORTEST, round(1000 / (rate or RATE)))
    with atomic_write(path) as target:
        first, *rest = frames
        first.save(target, kind, save_all=True, append_images=rest, duration=duration, loop=0, **options)
    return path


def _rows(columns: Columns) -> list[list[ByteArray]]:
    return [list(row) for row in zip(*columns.values(), strict=True)]
