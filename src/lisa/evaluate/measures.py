"""What the published protocols measure of one sample, of which there may be several pictures (lisa.evaluate.sets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.data.conditions.canny import edge_mask
from lisa.data.conditions.edges import edge_strength
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate.extractors.depth import levels_by_maximum
from lisa.evaluate.labels import VOID
from lisa.evaluate.metrics import depth_rmse, edge_f1, miou, ms_ssim, pose_pck, psnr_ssim
from lisa.evaluate.pooled import Counts, mean, single, summed

Pictures = Sequence[ByteArray]


def depth(reader: Any, sample: Sample, made: Pictures, _: Any) -> Counts:
    """RMSE of min-max normalised depth maps."""
    truth = reader(sample.image)
    return mean([depth_rmse.score(truth, reader(image)) for image in made])


def depth_255(reader: Any, sample: Sample, made: Pictures, _: Any) -> Counts:
    """RMSE of levels 0..255: the truth min-max normalised, what was made by its maximum alone, as in ControlNet++."""
    truth = np.floor(reader(sample.image) * 255)
    levels = [levels_by_maximum(reader.raw(image), (image.shape[0], image.shape[1])) for image in made]
    return mean([depth_rmse.score(truth, each) for each in levels])


def segmentation(reader: Any, sample: Sample, made: Pictures, _: Any) -> Counts:
    """Intersections and unions of the classes read off both pictures."""
    return _overlaps(reader, reader(sample.image), made)


def labels(reader: Any, sample: Sample, made: Pictures, labels: NDArray[np.int64] | None) -> Counts:
    """The same, of what was made against the data set's labels."""
    assert labels is not None  # the caller has read them
    return _overlaps(reader, labels, made)


def _overlaps(reader: Any, truth: NDArray[np.int64], made: Pictures) -> Counts:
    return summed([miou.counts(truth, reader(image), reader.classes, VOID) for image in made])


def pose(reader: Any, sample: Sample, made: Pictures, _: Any) -> Counts:
    """Joints found, of those asked for."""
    truth = reader(sample.image)
    return summed([single(*pose_pck.counts(truth, reader(image))) for image in made])


def canny(_: Any, sample: Sample, made: Pictures, __: Any) -> Counts:
    """F1 of Canny's edges, pixel by pixel; of several pictures that of all their pixels, as in ControlNet++."""
    found = np.concatenate([edge_mask(image) for image in made])
    return single(edge_f1.exact(np.tile(edge_mask(sample.image), (len(made), 1)), found))


def soft_edges(_: Any, sample: Sample, made: Pictures, __: Any) -> Counts:
    """MS-SSIM of soft edges."""
    truth = edge_strength(sample.image)
    return mean([ms_ssim.score(truth, edge_strength(image)) for image in made])


def whole(_: Any, sample: Sample, made: Pictures, __: Any) -> Counts:
    """PSNR of the pictures."""
    return mean([psnr_ssim.psnr(sample.image, image) for image in made])
