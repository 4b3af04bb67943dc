"""Frechet video distance (arXiv 1812.01717), by cd-fvd: of the features that I3D reads off whole clips."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lisa.common.errors import LisaError, need
from lisa.common.model_folders import first_line
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate.extractors.weights import device

_LEAST = 9  # frames: I3D halves their number three times, and then pools over two


def load() -> Any:
    """cd-fvd's evaluator with I3D's weights, which it fetches where they are not on this disk.

    Raises:
        LisaError: cd-fvd is not installed. Whatever a download raises, too.
    """
    library = need("cdfvd.fvd", "metrics")
    with contextlib.redirect_stdout(sys.stderr):  # it says what it loads, and standard output may be JSON
        return library.cdfvd("i3d", n_real="full", n_fake="full", device=str(device()))


def frechet_video_distance(evaluator: Callable[[], Any], made: Sequence[ByteArray], samples: Sequence[Sample]) -> float:
    """Of all clips made (F, H, W, 3) to all true ones.

    Args:
        evaluator: gives what :func:`load` does, and is called for clips only that can be measured.
        made: what was generated.
        samples: what was asked for.

    Raises:
        LisaError: fewer than two clips, of fewer than 9 frames, or not all of one shape; or cd-fvd fails.
    """
    clips = {"real": [sample.image for sample in samples], "fake": list(made)}
    shapes = {clip.shape for each in clips.values() for clip in each}
    if len(made) < 2:
        raise LisaError("fvd of one clip: it is a distance of sets", "Give at least two")
    if len(shapes) > 1:
        raise LisaError(f"fvd of clips of {len(shapes)} shapes, {sorted(shapes)[0]} and others", "Give those of one")
    if (frames := made[0].shape[0]) < _LEAST:
        raise LisaError(
            f"fvd of clips of {frames} frames: I3D needs {_LEAST} at least",
            f"Train and generate longer ones, with data.frames={_LEAST} or more",
        )
    measure = evaluator()
    stacked = [np.stack(each).astype(np.float32) for each in clips.values()]  # in 0..255
    try:
        measure.empty_real_stats()
        measure.empty_fake_stats()
        return float(measure.compute_fvd(*stacked))
    except Exception as error:  # whatever the library raises: the other metrics are worth having
        raise LisaError(f"cd-fvd could not measure these clips ({first_line(error)})") from error
