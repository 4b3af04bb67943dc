"""Clips beside clips: contact sheets, which show frames side by side, and animations. Both are made to be looked at:
what would be larger than a screen can use is shrunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lisa.common.errors import LisaError
from lisa.common.files import atomic_write
from lisa.data.samples import ByteArray
from lisa.sample.grids import GAP, HEAD, labelled_grid

#: Columns of clips by title: as many clips in each, uint8 (F, H, W, 3) all of one shape.
Columns = Mapping[str, Sequence[ByteArray]]

#: Frames per second of clips that tell none.
RATE = 8.0
_FORMATS = {".webp": "WEBP", ".gif": "GIF"}
_GAP = 1  # white pixels between the frames of a strip
#: Pixels per side that sheets and animations have at most. Pillow opens no picture of 180 million pixels, and WebP has
#: no side of more than 16383.
LARGEST = 4096
#: Frames of a clip in a contact sheet, at most.
STRIP = 16
_LOSSLESS = 2**20  # pixels of a frame up to which animations are kept to the last bit
_SMALLEST = 8  # pixels per side of what is shrunk
_SHORTEST = 20  # milliseconds: GIF counts in hundredths, and browsers slow down what is faster


def contact_sheet(columns: Columns, *, scale: int = 2) -> Image.Image:
    """One row per clip, with its frames side by side in each of the titled columns: :data:`STRIP` of longer clips.

    Laid out as :func:`lisa.sample.grids.labelled_grid`, so that :func:`lisa.sample.grids.grid_layout` describes it, at
    the scale that :func:`sheet_scale` tells.
    """
    scale = sheet_scale(columns, scale)
    rows = _some_frames(columns)
    rows = _fitted(rows, _across(rows), scale)
    return labelled_grid([[strip(clip) for clip in row] for row in rows], list(columns), scale=scale)


def sheet_scale(columns: Columns, scale: int = 2) -> int:
    """``scale``, or 1 where a contact sheet of that scale would be larger than :data:`LARGEST`."""
    rows = _some_frames(columns)
    return _scale(rows, _across(rows), scale)


def animation(columns: Columns, *, scale: int = 2) -> list[Image.Image]:
    """The same columns, one row per clip, frame by frame: each a picture of the grid at that time."""
    rows, across, scale = _rows(columns), len(columns), animation_scale(columns, scale)
    rows, count = _fitted(rows, across, scale), len(rows[0][0])
    return [
        labelled_grid([[clip[n] for clip in row] for row in rows], list(columns), scale=scale) for n in range(count)
    ]


def animation_scale(columns: Columns, scale: int = 2) -> int:
    """``scale``, or 1 where an animation of that scale would be larger than :data:`LARGEST`."""
    return _scale(_rows(columns), len(columns), scale)


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
        path: ``.webp`` (to the last bit, unless frames are large) or ``.gif`` (of 256 colours per frame).
        rate: pictures per second; None: :data:`RATE`.

    Raises:
        LisaError: another suffix.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise LisaError(f"animations cannot be written as {path.suffix!r} ({path.name!r})", choices=list(_FORMATS))
    lossless = frames[0].width * frames[0].height <= _LOSSLESS
    options = {"lossless": lossless, "minimize_size": False} if kind == "WEBP" else {"disposal": 1}
    duration = max(_SHORTEST, round(1000 / (rate or RATE)))
    with atomic_write(path) as target:
        first, *rest = frames
        first.save(target, kind, save_all=True, append_images=rest, duration=duration, loop=0, **options)
    return path


def _rows(columns: Columns) -> list[list[ByteArray]]:
    return [list(row) for row in zip(*columns.values(), strict=True)]


def _some_frames(columns: Columns) -> list[list[ByteArray]]:
    """At most :data:`STRIP` frames of each clip, evenly spread from its first to its last."""
    count = len(next(iter(columns.values()))[0])
    chosen = np.linspace(0, count - 1, min(count, STRIP)).round().astype(int)
    return [[clip[chosen] for clip in row] for row in _rows(columns)]


def _across(rows: list[list[ByteArray]]) -> int:
    """Frames beside each other in a contact sheet."""
    return sum(len(clip) for clip in rows[0])


def _scale(rows: list[list[ByteArray]], across: int, scale: int) -> int:
    height, width = rows[0][0].shape[1:3]
    return scale if _shrunk(rows, across, scale) == (height, width) else 1


def _shrunk(rows: list[list[ByteArray]], across: int, scale: int) -> tuple[int, int]:
    """(height, width) of frames of which ``across`` lie side by side, so that the whole is no larger than it may be."""
    height, width = rows[0][0].shape[1:3]
    free_width = (LARGEST / scale - GAP * len(rows[0])) / across - _GAP
    free_height = (LARGEST / scale - HEAD) / len(rows) - GAP
    share = min(1.0, free_width / width, free_height / height)
    return max(_SMALLEST, int(height * share)), max(_SMALLEST, int(width * share))


def _fitted(rows: list[list[ByteArray]], across: int, scale: int) -> list[list[ByteArray]]:
    height, width = _shrunk(rows, across, scale)
    if (height, width) == rows[0][0].shape[1:3]:
        return rows
    return [[_resized(clip, height, width) for clip in row] for row in rows]


def _resized(clip: ByteArray, height: int, width: int) -> ByteArray:
    smaller = [Image.fromarray(frame).resize((width, height), Image.Resampling.BOX) for frame in clip]
    return np.stack([np.asarray(frame) for frame in smaller])
