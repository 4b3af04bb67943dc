"""Multi-scale structural similarity, by torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, need
from lisa.evaluate.metrics.shapes import require_same_shape

_LEAST = 161  # pixels: four halvings must leave more than the window of 11


def score(truth: NDArray[Any], made: NDArray[Any]) -> float:
    """MS-SSIM (five scales) of maps (H, W) in 0..1; 1 is perfect.

    Raises:
        LisaError: maps of different size or below 161 pixels, or torchmetrics is not installed.
    """
    compare = need("torchmetrics.functional.image", "metrics").multiscale_structural_similarity_index_measure
    import torch

    truth, made = np.asarray(truth, np.float32), np.asarray(made, np.float32)
    require_same_shape(truth, made)
    if min(truth.shape) < _LEAST:
        raise LisaError(
            f"MS-SSIM needs {_LEAST} pixels at least, the pictures are {truth.shape}", "Generate larger ones"
        )
    ours, theirs = (torch.from_numpy(each)[None, None] for each in (made, truth))
    return float(compare(ours, theirs, data_range=1.0))
