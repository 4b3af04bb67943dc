"""A data set's own label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError
from lisa.data.folders import require_folder
from lisa.data.transforms import PairedTransform

#: Pixels that are of no class.
VOID = 255
_MODES = ("L", "P")  # one channel of bytes; a palette's colours are for looking at


def read_label_maps(
    folder: str | Path,
    keys: Sequence[str],
    transform: PairedTransform | None = None,
    *,
    start: int,
    classes: int,
) -> list[NDArray[np.int64]]:
    """Label maps ``<key>.png``, whose pixels are the numbers of classes, as classes 0 .. classes - 1: (H, W) each.

    Pixels below ``start`` or of 255 are of no class: :data:`VOID`.

    Args:
        folder: with the maps. PNG only: JPEG changes the numbers.
        keys: of the samples, in order.
        transform: what was done to the pictures, whose crop depends on the place in ``keys``; done to the maps, too,
            without mixing numbers.
        start: the number that the maps give to the first class.
        classes: how many there are.

    Raises:
        LisaError: no such folder, a missing map, or one that has colours instead of numbers or numbers of no class.
    """
    place = require_folder(folder)
    missing = [key for key in keys if not (place / f"{key}.png").is_file()]
    if missing:
        raise LisaError(
            f"{str(folder)!r} lacks {len(missing)} of {len(keys)} label maps ({missing[0] + '.png'!r} ...)",
            "Each sample needs a PNG of its name whose pixels are the numbers of the classes",
        )
    return [_read(place / f"{key}.png", i, transform, start, classes) for i, key in enumerate(keys)]


def _read(file: Path, index: int, transform: PairedTransform | None, start: int, classes: int) -> NDArray[np.int64]:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            mode, labels = picture.mode, np.asarray(picture)
    except OSError as error:
        raise LisaError(f"the label map {str(file)!r} cannot be read ({error})", "Write it again, as PNG") from None
    if mode not in _MODES:
        raise LisaError(
            f"the label map {str(file)!r} is of mode {mode}, not numbers of classes",
            "Save it with one channel of 8 bits (or a palette): pixel = number of the class, 255 = none",
        )
    greatest = int(np.max(labels, where=labels != VOID, initial=0))
    if greatest >= start + classes:
        raise LisaError(
            f"the label map {str(file)!r} holds {greatest}, but {classes} classes from {start} on end at "
            f"{start + classes - 1}",
            "Say with --labels-start which number the first class has, or choose an --extractor of these classes",
        )
    labels = np.where((labels < start) | (labels == VOID), VOID, labels - np.minimum(labels, start)).astype(np.uint8)
    if transform is not None:
        labels = transform.fit(np.repeat(labels[..., None], 3, -1), index, "nearest")[..., 0]
    return labels.astype(np.int64)
