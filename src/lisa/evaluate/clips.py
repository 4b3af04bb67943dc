"""Clips: every frame is judged as a picture is, and what holds between the frames beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lisa.common.errors import LisaError
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate.metrics import METRICS, Metric
from lisa.evaluate.metrics.temporal import flicker, warping_error
from lisa.evaluate.protocols import Protocol, Scores

#: Metrics of clips alone, by name; the unit of ``flicker`` is that of the fidelity.
TEMPORAL = {
    metric.name: metric
    for metric in (
        Metric("flicker", "temporal", "flicker", False, "", "mean change of the fidelity from frame to frame"),
        Metric("warping_error", "temporal", "warping_error", False, "", "squared change along the exact motion"),
    )
}
_OF_FRAMES = ("instances", "flow", "visible")  # of the truth; the rest holds for the whole clip


def is_clip(sample: Sample) -> bool:
    """Whether a sample is a clip, else a picture."""
    return sample.image.ndim == 4


def judge_clip(protocol: Protocol, sample: Sample, made: ByteArray) -> Scores:
    """All metrics of one clip: those of the protocol and ``fidelity`` as means over the frames, and between frames
    ``flicker`` and, where the truth tells the exact motion, ``warping_error``.

    Args:
        protocol: of pictures.
        sample: what was asked for, a clip.
        made: uint8 (F, H, W, 3), as large and as long as the sample's.

    Raises:
        LisaError: another size or number of frames.
    """
    if made.shape != sample.image.shape or made.dtype != np.uint8:
        raise LisaError(
            f"the clip made for {sample.key!r} is {made.dtype} {made.shape}, its truth {sample.image.shape}",
            "Evaluate at the size and the number of frames that were generated",
        )
    frames = [protocol.judge(frame, each) for frame, each in zip(frames_of(sample), made, strict=True)]
    scores = {name: float(np.mean([frame[name] for frame in frames])) for name in protocol.metrics}
    scores["flicker"] = flicker([frame["fidelity"] for frame in frames])
    if sample.truth is not None and "flow" in sample.truth:
        scores["warping_error"] = warping_error(sample.truth, made)
    return {**scores, "fidelity": float(np.mean([frame["fidelity"] for frame in frames]))}


def frames_of(sample: Sample) -> list[Sample]:
    """The frames of a clip as samples, each with its own part of the truth."""
    truths: Sequence[dict[str, object] | None] = [None] * len(sample.image)
    if (truth := sample.truth) is not None:
        whole = {name: truth[name] for name in truth if name not in _OF_FRAMES}
        truths = [{**whole, "instances": instances} for instances in truth["instances"]]
    return [
        replace(sample, key=f"{sample.key}/{n}", image=image, condition=None, truth=own)
        for n, (image, own) in enumerate(zip(sample.image, truths, strict=True))
    ]


def describe(name: str, protocol: Protocol) -> Metric:
    """A metric of pictures or of clips, with its unit."""
    if name == "flicker":
        return replace(TEMPORAL[name], unit=protocol.fidelity_unit)
    return METRICS[name] if name in METRICS else TEMPORAL[name]
