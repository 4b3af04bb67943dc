"""Metrics by name: how close a picture made is to the truth.

A new one is a new file with ``score(truth, made) -> float`` and one line in the table below.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from lisa.common.errors import choose


@dataclass(frozen=True)
class Metric:
    """A metric: where it lives and how to read its values."""

    name: str
    module: str
    function: str
    higher_is_better: bool
    unit: str
    about: str

    def score(self, truth: Any, made: Any) -> float:
        """The value for one picture; what ``truth`` and ``made`` are is said in the metric's module."""
        scorer = getattr(importlib.import_module(f"{__name__}.{self.module}"), self.function)
        return float(scorer(truth, made))


_TABLE = (
    Metric("edge_f1", "edge_f1", "score", True, "", "F1 of edge pixels, one pixel of tolerance"),
    Metric("miou", "miou", "score", True, "", "intersection over union, mean over classes"),
    Metric("depth_rmse", "depth_rmse", "score", False, "of the depth range", "root mean square error of depth"),
    Metric("stroke_pck", "stroke_pck", "score", True, "", "share of shapes whose centre is within 0.1 of the side"),
    Metric("edge_correlation", "correlation", "score", True, "", "correlation of soft edge maps"),
    Metric("psnr", "psnr_ssim", "psnr", True, "dB", "peak signal-to-noise ratio, at most 60"),
    Metric("ssim", "psnr_ssim", "ssim", True, "", "structural similarity"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


def get(name: str) -> Metric:
    """The metric ``name``.

    Raises:
        LisaError: there is none of that name.
    """
    return METRICS[choose("metric", name, METRICS)]
