"""Pictures beside pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lisa.common.files import atomic_write
from lisa.data.samples import unstack_pictures

#: Between the pictures of a labelled grid, and above them for the titles: in pixels before it is enlarged.
GAP, HEAD = 4, 12
_SCALE = 2


def grid(pictures: Sequence[np.ndarray], columns: int, *, gap: int = 2, scale: int = 1) -> Image.Image:
    """Equal-sized uint8 pictures (H, W, 3), row by row, enlarged ``scale`` times without smoothing."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    image = Image.fromarray(canvas)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def labelled_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], *, scale: int = _SCALE) -> Image.Image:
    """A grid of rows with a title above each column."""
    body = grid([picture for row in rows for picture in row], len(titles), gap=GAP, scale=scale)
    font = ImageFont.load_default(size=max(11, 7 * scale))
    head = HEAD * scale
    image = Image.new("RGB", (body.width, body.height + head), "white")
    image.paste(body, (0, head))
    draw = ImageDraw.Draw(image)
    width = body.width / len(titles)
    for i, title in enumerate(titles):
        draw.text(((i + 0.5) * width, head / 2), title, fill="black", font=font, anchor="mm")
    return image


def grid_layout(titles: Sequence[str], scale: int = _SCALE) -> dict[str, object]:
    """How the columns of a :func:`labelled_grid` lie, for those who cut it up: titles, head and gap in pixels."""
    return {"columns": list(titles), "head": HEAD * scale, "gap": GAP * scale}


def titled_rows(
    conditions: Sequence[str], rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Rows that begin with their stacked condition (H, W, 3 n), as rows with each of its pictures in a column.

    Args:
        conditions: their names.
        rows: (stacked condition, other pictures ...).
        titles: of the columns after the condition's.

    Returns:
        Rows and titles for :func:`labelled_grid`; a single condition's column is called ``condition``.
    """
    names = ["condition"] if len(conditions) == 1 else list(conditions)
    return [[*unstack_pictures(row[0]), *row[1:]] for row in rows], [*names, *titles]


def save_png(image: Image.Image, path: Path) -> None:
    """Write ``image`` whole or not at all."""
    with atomic_write(path) as target:
        image.save(target, format="PNG")
