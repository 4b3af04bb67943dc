"""The two published protocols: pictures judged by what networks read off them. Not comparable with each other.

``lisa``: of arXiv 2606.27192; the truth is what the same network reads off the real picture. ``controlnet++``: of Li
et al., "ControlNet++", ECCV 2024: 512 pixels, UniPC, 20 steps, guidance 7.5, four pictures per condition. What a
result here deviates in is written into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, choose
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate import measures
from lisa.evaluate.extractors.depth import DepthReader
from lisa.evaluate.extractors.pose import PoseReader
from lisa.evaluate.extractors.segmentation import SegmentationReader
from lisa.evaluate.extractors.weights import locate
from lisa.evaluate.pooled import Counts, pooled, ratio
from lisa.evaluate.sets import Sets, check_sets

#: Per sample: it, what was made (a picture of each set), and the data's classes (H, W) where the protocol wants them.
Measure = Callable[[Any, Sample, Sequence[ByteArray], "NDArray[np.int64] | None"], Counts]


@dataclass(frozen=True)
class Published:
    """How a published protocol judges one condition.

    Attributes:
        name: ``lisa/depth``, ``controlnet++/canny`` ...
        metric: the figure reported, named.
        measure: it, of one sample.
        about: one sentence for reports.
        reader: kind of network, or None.
        weights: of the reader, as published; for poses the estimator's and the detector's.
        labels: whether the truth is the data set's own label maps.
        labels_start: the number of the first class in them, unless the user says otherwise; lower ones are no class.
        error: the greatest value of a metric that is an error; fidelity is 1 - value / error. 0: it is the metric.
        unit: of the metric.
        differs: what is done otherwise here than published.
        also: further metrics that belong to it (:mod:`lisa.evaluate.extras`).
    """

    name: str
    metric: str
    measure: Measure
    about: str
    reader: str | None = None
    weights: tuple[str, ...] = ()
    labels: bool = False
    labels_start: int = 0
    error: float = 0.0
    unit: str = ""
    differs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def fidelity_rule(self) -> str:
        """How fidelity comes from the metric."""
        if not self.error:
            return self.metric
        return f"1 - {self.metric}" + (f" / {self.error:.0f}" if self.error != 1 else "")

    def fidelity(self, interval: Mapping[str, float | None]) -> dict[str, float | None]:
        """The metric's interval as one of fidelity, higher is better."""
        if not self.error:
            return dict(interval)
        ends = {"value": "value", "low": "high", "high": "low"}
        turned = {end: interval[other] for end, other in ends.items()}
        return {end: None if value is None else 1 - value / self.error for end, value in turned.items()}


def find(family: str, condition: str) -> Published:
    """The protocol of a condition.

    Raises:
        LisaError: the family has none for it.
    """
    table = FAMILIES[choose("protocol", family, FAMILIES)]
    return table[choose(f"condition of the protocol {family}", condition, table)]


def load_reader(protocol: Published, extractor: str | None = None, detector: str | None = None) -> Any:
    """The network that a protocol reads pictures with; None where it needs none.

    Args:
        protocol: of the condition.
        extractor: folder or Hub name, instead of the published one.
        detector: the same, of the person detector.

    Raises:
        LisaError: an extractor where none is used, or weights that cannot be had or do not fit.
    """
    for option, value in (("extractor", extractor), ("detector", detector)):
        used = protocol.reader == "pose" or (option == "extractor" and protocol.reader is not None)
        if value is not None and not used:
            raise LisaError(
                f"the protocol {protocol.name} uses no {option}; {value!r} was given", f"Leave out {option}"
            )
    if protocol.reader is None:
        return None
    found = [
        locate(given or name) for given, name in zip((extractor, detector), protocol.weights, strict=False)
    ]  # before any is loaded
    return _READERS[protocol.reader](*found)


def evaluate(
    protocol: Published,
    reader: Any,
    sets: Sets,
    samples: Sequence[Sample],
    labels: Sequence[NDArray[np.int64]] | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Judge pictures; the result is that of :func:`lisa.evaluate.runner.evaluate_images`, and ``extractors``.

    The figure is of all pictures (mIoU and PCK pool their counts, as is usual), with a bootstrap interval over the
    samples; ``per_image`` holds each sample's own.

    Args:
        protocol: see :func:`find`.
        reader: see :func:`load_reader`.
        sets: uint8 (H, W, 3), one per sample, of each set (:mod:`lisa.evaluate.sets`).
        samples: what was asked for.
        labels: (H, W) each, where ``protocol.labels``: see :func:`lisa.evaluate.labels.read_label_maps`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        LisaError: numbers that differ, a picture of another size, or nothing that could be judged.
    """
    check_sets(sets, samples)
    counts = {}
    for i, (sample, *made) in enumerate(zip(samples, *sets, strict=True)):
        for image in made:
            if image.shape != sample.image.shape:
                raise LisaError(
                    f"the picture made for {sample.key!r} is {image.shape}, its truth {sample.image.shape}",
                    "Evaluate at the size that was generated",
                )
        counts[sample.key] = protocol.measure(reader, sample, made, None if labels is None else labels[i])
    if not any(below.any() for _, below in counts.values()):
        raise LisaError(
            f"{protocol.name} found nothing to judge in {len(samples)} true pictures",
            "Use data that shows what the protocol looks for, or another extractor",
        )
    interval = pooled(list(counts.values()), seed=seed, n=resamples).to_json()
    own = {key: ratio(each) for key, each in counts.items()}
    alone = {key: {protocol.metric: value, "fidelity": _one(protocol, value)} for key, value in own.items()}
    return {
        "condition": protocol.name.partition("/")[2],
        "protocol": protocol.name,
        "about": protocol.about,
        "samples": len(samples),
        "fidelity": protocol.fidelity(interval),
        "fidelity_rule": protocol.fidelity_rule,
        "fidelity_unit": "" if protocol.error else protocol.unit,
        "metrics": {protocol.metric: {**interval, "unit": protocol.unit, "higher_is_better": not protocol.error}},
        "per_image": {key: {n: v if np.isfinite(v) else None for n, v in each.items()} for key, each in alone.items()},
        "extractors": readers_record(reader),
    }


def readers_record(reader: Any) -> list[dict[str, str]]:
    """Exactly which weights a reader has."""
    weights = [getattr(reader, name, None) for name in ("weights", "detector_weights")]
    return [each.to_json() for each in weights if each is not None]


def _one(protocol: Published, value: float) -> float:
    return 1 - value / protocol.error if protocol.error else value


_READERS = {"depth": DepthReader, "segmentation": SegmentationReader, "pose": PoseReader}
_MASK2FORMER = ("facebook/mask2former-swin-large-ade-semantic",)
_VITPOSE = ("usyd-community/vitpose-base-simple", "PekingU/rtdetr_r50vd_coco_o365")
_REREAD = "true depth read off the true picture (published: the data set's own depth map)"
_SCHARR = "soft edges by Scharr's gradient (published: the network that made the condition)"
_CANNY = "edges by scikit-image's Canny, smoothed by one pixel"


def _named(*protocols: Published) -> dict[str, Published]:
    return {protocol.name.partition("/")[2]: protocol for protocol in protocols}


def _soft(condition: str) -> Published:
    about = "MS-SSIM of soft edges of both pictures"
    return Published(f"controlnet++/{condition}", "ms_ssim", measures.soft_edges, about, differs=(_SCHARR,))


FAMILIES: dict[str, dict[str, Published]] = {
    "lisa": _named(
        Published(
            "lisa/pose",
            "pck@0.2",
            measures.pose,
            "joints of matched persons within 0.2 of the diagonal of the true person's box",
            reader="pose",
            weights=_VITPOSE,
            differs=("joints by ViTPose (published: OpenPose)",),
        ),
        Published(
            "lisa/segmentation",
            "miou",
            measures.segmentation,
            "mIoU of the classes read off both pictures, over the whole set",
            reader="segmentation",
            weights=_MASK2FORMER,
        ),
        Published(
            "lisa/depth",
            "depth_rmse",
            measures.depth,
            "RMSE of the depth read off both pictures, each map min-max normalised",
            reader="depth",
            weights=("Intel/dpt-hybrid-midas",),
            error=1.0,
            unit="of the depth range",
        ),
        Published(
            "lisa/lowres",
            "psnr",
            measures.whole,
            "PSNR of the whole pictures; LPIPS beside it",
            unit="dB",
            also=("lpips",),
        ),
    ),
    "controlnet++": _named(
        Published(
            "controlnet++/segmentation",
            "miou",
            measures.labels,
            "mIoU of the classes read off what was made against the data's own labels, over the whole set",
            reader="segmentation",
            weights=_MASK2FORMER,
            labels=True,
            labels_start=1,  # ADE20K's files: 0 is none; the weights' classes begin at 0, and do not say so
        ),
        Published(
            "controlnet++/depth",
            "depth_rmse_255",
            measures.depth_255,
            "RMSE of the depth read off both pictures, the true one min-max normalised, the other by its maximum",
            reader="depth",
            weights=("Intel/dpt-large",),
            error=255.0,
            unit="of 0..255",
            differs=(_REREAD,),
        ),
        Published(
            "controlnet++/canny", "pixel_f1", measures.canny, "F1 of Canny's edges (0.1, 0.2)", differs=(_CANNY,)
        ),
        *[_soft(condition) for condition in ("edges", "hed", "lineart")],
    ),
}
