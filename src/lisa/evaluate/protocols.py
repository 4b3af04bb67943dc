"""Protocols: how a generated picture is judged, by condition.

Scenes know the exact truth: the generated picture is labelled by the nearest of the scene's own colours
(:func:`lisa.data.scenes.label_by_colour`), and what follows is counting. Of other pictures the condition is extracted
again, by the same extractor, from the generated and from the true picture, and the two are compared. The two kinds are
not comparable with each other, and neither is with published protocols that use networks to extract: every result
names the protocol it used.

Every protocol has a ``fidelity``, higher is better: one of its metrics, or one minus it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, choose
from lisa.data.conditions.canny import edge_mask
from lisa.data.conditions.edges import edge_strength
from lisa.data.conditions.gray import luminance
from lisa.data.conditions.lowres import small
from lisa.data.samples import ByteArray, Sample
from lisa.data.scenes import label_by_colour, outlines
from lisa.evaluate.metrics import METRICS

Scores = dict[str, float]


@dataclass(frozen=True)
class Protocol:
    """How pictures of one condition are judged.

    Attributes:
        name: ``scenes/edges``, ``pictures/canny`` ...
        metrics: the metrics reported.
        fidelity_metric: the one of them that fidelity is.
        about: one sentence for reports.
    """

    name: str
    metrics: tuple[str, ...]
    fidelity_metric: str
    about: str
    _views: Callable[[Sample, ByteArray], Mapping[str, tuple[Any, Any]]]

    @property
    def fidelity_unit(self) -> str:
        """The unit of fidelity (empty for shares)."""
        return METRICS[self.fidelity_metric].unit if METRICS[self.fidelity_metric].higher_is_better else ""

    @property
    def fidelity_rule(self) -> str:
        """How fidelity comes from the metric."""
        sign = "" if METRICS[self.fidelity_metric].higher_is_better else "1 - "
        return sign + self.fidelity_metric

    def judge(self, sample: Sample, made: ByteArray) -> Scores:
        """All metrics of one picture, and ``fidelity``.

        Args:
            sample: what was asked for.
            made: uint8 (H, W, 3), as large as the sample's image.

        Raises:
            LisaError: another size, or not uint8.
        """
        if made.shape != sample.image.shape or made.dtype != np.uint8:
            raise LisaError(
                f"the picture made for {sample.key!r} is {made.dtype} {made.shape}, its truth {sample.image.shape}",
                "Evaluate at the size that was generated",
            )
        views = self._views(sample, made)
        scores = {name: METRICS[name].score(*views[name]) for name in self.metrics}
        value = scores[self.fidelity_metric]
        return {**scores, "fidelity": value if METRICS[self.fidelity_metric].higher_is_better else 1 - value}


def find(condition: str, exact: bool) -> Protocol:
    """The protocol of a condition; ``exact`` where samples carry exact truth (scenes).

    Raises:
        LisaError: there is none for this condition.
    """
    table = SCENES if exact else PICTURES
    what = "condition to evaluate on scenes" if exact else "condition to evaluate on pictures"
    return table[choose(what, condition, table)]


def exists(condition: str, exact: bool) -> bool:
    """Is there a protocol for this condition?"""
    return condition in (SCENES if exact else PICTURES)


def read_labels(sample: Sample, made: ByteArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(true, read) index of the visible shape per pixel, 0 the background, for a sample of scenes.

    Raises:
        LisaError: the sample carries no exact truth.
    """
    if sample.truth is None:
        raise LisaError(f"sample {sample.key!r} carries no exact truth", "Scenes lose it when cropped or flipped")
    return np.asarray(sample.truth["instances"]), label_by_colour(made, sample.truth["colours"])


def _scene_edges(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    truth, read = read_labels(sample, made)
    return {"edge_f1": (outlines(truth), outlines(read))}


def _scene_segmentation(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    truth, read = read_labels(sample, made)
    assert sample.truth is not None  # read_labels has looked
    kinds = np.unique(sample.truth["kinds"], return_inverse=True)[1]
    return {"miou": (kinds[truth], kinds[read])}


def _scene_depth(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    truth, read = read_labels(sample, made)
    assert sample.truth is not None
    depths = np.asarray(sample.truth["depths"])
    return {"depth_rmse": (depths[truth], depths[read])}


def _scene_skeleton(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    return {"stroke_pck": read_labels(sample, made)}


def _lowres(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    return {"psnr": (small(sample.image), small(made)), "ssim": (sample.image, made)}


def _canny(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    return {"edge_f1": (edge_mask(sample.image), edge_mask(made))}


def _edges(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    return {"edge_correlation": (edge_strength(sample.image), edge_strength(made))}


def _gray(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    return {"psnr": (luminance(sample.image) * 255, luminance(made) * 255), "ssim": (sample.image, made)}


def _blur(sample: Sample, made: ByteArray) -> Mapping[str, tuple[Any, Any]]:
    from lisa.data.conditions import make

    return {"psnr": (make("blur", sample.image), make("blur", made)), "ssim": (sample.image, made)}


def _table(kind: str, *rows: tuple[str, tuple[str, ...], str, Any]) -> dict[str, Protocol]:
    return {name: Protocol(f"{kind}/{name}", metrics, metrics[0], about, views) for name, metrics, about, views in rows}


SCENES = _table(
    "scenes",
    ("edges", ("edge_f1",), "outlines of the labels read by colour against the exact ones", _scene_edges),
    ("segmentation", ("miou",), "kinds of shapes read by colour against the exact ones", _scene_segmentation),
    ("depth", ("depth_rmse",), "the depth of the shape read at each pixel against the exact one", _scene_depth),
    ("skeleton", ("stroke_pck",), "centres of the shapes read by colour against the exact ones", _scene_skeleton),
    ("lowres", ("psnr", "ssim"), "PSNR of 8x8 block means; SSIM of the whole pictures beside it", _lowres),
)
PICTURES = _table(
    "pictures",
    ("canny", ("edge_f1",), "Canny edges of both pictures", _canny),
    ("edges", ("edge_correlation",), "soft edges of both pictures", _edges),
    ("lowres", ("psnr", "ssim"), "PSNR of 8x8 block means; SSIM of the whole pictures beside it", _lowres),
    ("gray", ("psnr", "ssim"), "PSNR of the luminance; SSIM of the whole pictures beside it", _gray),
    ("blur", ("psnr", "ssim"), "PSNR of the blurred pictures; SSIM of the whole pictures beside it", _blur),
)
