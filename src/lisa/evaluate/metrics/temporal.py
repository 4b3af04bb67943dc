"""What holds between the frames of a clip: does what moves keep its look, and is the condition followed evenly?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError


def warping_error(truth: Mapping[str, Any], made: NDArray[np.uint8]) -> float:
    """How much a frame differs from the next one looked up where the true motion carries each pixel; 0 is perfect.

    As Lai et al. (arXiv 1808.00449, section 4.3) measure it: the squared difference over the pixels that are seen in
    both frames, mean over the pairs of neighbouring frames; here of values in 0..1, mean over the colour channels. They
    estimate motion and visibility, which are exact here. The second frame is interpolated bilinearly.

    Args:
        truth: ``flow`` (F - 1, H, W, 2) in pixels, x then y, and ``visible`` (F - 1, H, W).
        made: uint8 (F, H, W, 3).

    Raises:
        LisaError: the motion is of another clip, or no pixel is ever seen in two neighbouring frames.
    """
    flow, visible = np.asarray(truth["flow"]), np.asarray(truth["visible"], bool)
    if flow.shape[:3] != (len(made) - 1, *made.shape[1:3]):
        raise LisaError(f"the motion is {flow.shape}, the clip {made.shape}", "Judge a clip by its own motion")
    values = made.astype(np.float64) / 255
    errors = [
        float(np.mean((one - look_up(following, moves))[seen] ** 2))
        for one, following, moves, seen in zip(values[:-1], values[1:], flow, visible, strict=True)
        if seen.any()
    ]
    if not errors:
        raise LisaError("no pixel of the clip is seen in two neighbouring frames", "Judge a clip of slower motion")
    return float(np.mean(errors))


def flicker(fidelities: Sequence[float]) -> float:
    """Mean change of the fidelity, and so of the condition's error, from each frame to the next; 0 is even."""
    return float(np.mean(np.abs(np.diff(np.asarray(fidelities, np.float64)))))


def look_up(frame: NDArray[np.float64], flow: NDArray[Any]) -> NDArray[np.float64]:
    """``frame`` (H, W, C) at each pixel's place plus ``flow`` (H, W, 2), bilinear; beyond the border its nearest."""
    height, width = frame.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x = np.clip(columns + flow[..., 0].astype(np.float64), 0, width - 1)
    y = np.clip(rows + flow[..., 1].astype(np.float64), 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right, down = (x - left)[..., None], (y - top)[..., None]
    upper = frame[top, left] * (1 - right) + frame[top, left + 1] * right
    lower = frame[top + 1, left] * (1 - right) + frame[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
