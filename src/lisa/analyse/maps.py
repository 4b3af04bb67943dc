"""Features and scores as pictures: three principal components as red, green and blue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ByteArray = NDArray[np.uint8]
_EDGE = 1.0  # per cent of the values at either end that are cut


def principal_maps(features: NDArray[np.floating], size: tuple[int, int]) -> list[ByteArray]:
    """Maps (B, C, h, w) as B pictures of ``size`` (height, width), all on one basis: their common components.

    Components are ordered by variance; each one's sign makes its largest weight positive. A feature with fewer than
    three channels leaves colours out.
    """
    cells = np.moveaxis(features.astype(np.float64), 1, -1)
    centred = cells - cells.mean((0, 1, 2))
    values = centred @ _basis(centred.reshape(-1, centred.shape[-1]))
    low, high = np.percentile(values, [_EDGE, 100 - _EDGE], axis=(0, 1, 2))
    unit = (values - low) / np.where(high > low, high - low, 1)
    return [_enlarged(picture, size) for picture in unit]


def signed_maps(
    columns: list[NDArray[np.floating]], size: tuple[int, int], reference: int = 0
) -> list[list[ByteArray]]:
    """Scores, each column (B, C, h, w), as pictures on the basis and the scale of one of them: zero is grey.

    Args:
        columns: arrays of one shape.
        size: (height, width) of the pictures.
        reference: which column sets basis and scale; what exceeds it is cut.
    """
    cells = [np.moveaxis(column.astype(np.float64), 1, -1) for column in columns]
    basis = _basis(cells[reference].reshape(-1, cells[reference].shape[-1]))
    scale = np.percentile(np.abs(cells[reference] @ basis), 100 - _EDGE) or 1.0
    return [[_enlarged(0.5 + 0.5 * picture @ basis / scale, size) for picture in column] for column in cells]


def _basis(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first three principal directions of ``rows`` (n, C), not centred here: (C, 3), zeros where C is smaller."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    basis = vectors[:, ::-1][:, :3]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
    return np.pad(basis, ((0, 0), (0, 3 - basis.shape[1])))


def _enlarged(unit: NDArray[np.float64], size: tuple[int, int]) -> ByteArray:
    picture = (np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST))
