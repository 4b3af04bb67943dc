"""PCK@0.2: the share of joints that are where they should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, need
from lisa.evaluate.extractors.pose import People

_WITHIN = 0.2  # of the diagonal of the true person's box


def counts(truth: People, made: People) -> tuple[int, int]:
    """(joints found at their place, joints that were asked for).

    Persons are matched by the overlap (IoU) of their boxes so that its sum is largest (Hungarian method); without any
    overlap they do not match. A joint counts as found if its distance from the true one is at most 0.2 of the diagonal
    of the true person's box. Joints that the estimator did not see in the truth are not asked for; those of a person
    that has no match, or that it does not see in what was made, are missed.

    Raises:
        LisaError: the two are of different skeletons.
    """
    asked = int(truth.seen.sum())
    if not len(truth.boxes) or not len(made.boxes):
        return 0, asked
    if truth.joints.shape[1:] != made.joints.shape[1:]:
        raise LisaError(f"the truth has {truth.joints.shape[1]} joints, what was made {made.joints.shape[1]}")
    overlap = box_iou(truth.boxes, made.boxes)
    rows, columns = need("scipy.optimize", "conditions").linear_sum_assignment(overlap, maximize=True)
    found = 0
    for row, column in zip(rows, columns, strict=True):
        if overlap[row, column] > 0:
            reach = _WITHIN * float(np.hypot(*(truth.boxes[row, 2:] - truth.boxes[row, :2])))
            distance = np.linalg.norm(truth.joints[row] - made.joints[column], axis=-1)
            found += int((truth.seen[row] & made.seen[column] & (distance <= reach)).sum())
    return found, asked


def box_iou(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (P, 4) and (Q, 4): left, top, right, bottom. (P, Q)."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (ours, theirs)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
