"""Conditions that can be computed from any picture, by name.

A new one is a new file with ``extract(image) -> condition`` and one line in the table below. Modules are imported when
first used, so that listing the names costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from lisa.common.errors import LisaError, choose
from lisa.data.samples import ByteArray

#: name -> (module in this package, one line of help)
_TABLE: dict[str, tuple[str, str]] = {
    "canny": ("canny", "thin binary edges (Canny)"),
    "edges": ("edges", "soft edges: magnitude of the gradient (Scharr)"),
    "lowres": ("lowres", "means of 8x8 blocks, shown at full size (super-resolution)"),
    "gray": ("gray", "luminance (colourisation)"),
    "blur": ("blur", "Gaussian blur (deblurring)"),
}
NAMES: tuple[str, ...] = tuple(_TABLE)


def make(name: str, image: ByteArray, **options: Any) -> ByteArray:
    """The condition ``name`` of a picture.

    Args:
        name: one of :data:`NAMES`.
        image: uint8 (H, W, 3).
        **options: of the condition's ``extract``.

    Returns:
        uint8 (H, W, 3).

    Raises:
        LisaError: an unknown name, or not a picture.
    """
    module, _ = _TABLE[choose("condition", name, NAMES)]
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != "uint8":
        raise LisaError(f"a condition is made from uint8 (H, W, 3), this is {image.dtype} {image.shape}")
    extract = importlib.import_module(f"{__name__}.{module}").extract
    result: ByteArray = extract(image, **options)
    return result


def describe(name: str) -> str:
    """One line of help about a condition."""
    return _TABLE[choose("condition", name, NAMES)][1]
