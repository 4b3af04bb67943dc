"""What the published protocols measure of one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.data.conditions.canny import edge_mask
from lisa.data.conditions.edges import edge_strength
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate.extractors.depth import levels_by_maximum
from lisa.evaluate.labels import VOID
from lisa.evaluate.metrics import depth_rmse, edge_f1, miou, ms_ssim, pose_pck, psnr_ssim
from lisa.evaluate.pooled import Counts, single


def depth(reader: Any, sample: Sample, made: ByteArray, _: Any) -> Counts:
    """RMSE of min-max normalised depth maps."""
    return single(depth_rmse.score(reader(sample.image), reader(made)))


def depth_255(reader: Any, sample: Sample, made: ByteArray, _: Any) -> Counts:
    """RMSE of levels 0..255: the truth min-max normalised, what was made by its maximum alone, as in ControlNet++."""
    truth = np.floor(reader(sample.image) * 255)
    return single(depth_rmse.score(truth, levels_by_maximum(reader.raw(made), (made.shape[0], made.shape[1]))))


def segmentation(reader: Any, sample: Sample, made: ByteArray, _: Any) -> Counts:
    """Intersections and unions of the classes read off both pictures."""
    return miou.counts(reader(sample.image), reader(made), reader.classes, VOID)


def labels(reader: Any, sample: Sample, made: ByteArray, labels: NDArray[np.int64] | None) -> Counts:
    """The same, of what was made against the data set's labels."""
    assert labels is not None  # the caller has read them
    return miou.counts(labels, reader(made), reader.classes, VOID)


def pose(reader: Any, sample: Sample, made: ByteArray, _: Any) -> Counts:
    """Joints found, of those asked for."""
    return single(*pose_pck.counts(reader(sample.image), reader(made)))


def canny(_: Any, sample: Sample, made: ByteArray, __: Any) -> Counts:
    """F1 of Canny's edges, pixel by pixel."""
    return single(edge_f1.exact(edge_mask(sample.image), edge_mask(made)))


def soft_edges(_: Any, sample: Sample, made: ByteArray, __: Any) -> Counts:
    """MS-SSIM of soft edges."""
    return single(ms_ssim.score(edge_strength(sample.image), edge_strength(made)))


def whole(_: Any, sample: Sample, made: ByteArray, __: Any) -> Counts:
    """PSNR of the pictures."""
    return single(psnr_ssim.psnr(sample.image, made))
