"""Depth, as a monocular estimator reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray
from lisa.evaluate.extractors.weights import Weights, load_model, load_processor


class DepthReader:
    """A depth estimator of transformers (MiDaS, DPT, Depth Anything ...).

    Raises:
        LisaError: the weights are of something else.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._model = load_model("AutoModelForDepthEstimation", weights)
        self._processor = load_processor("AutoImageProcessor", weights)

    def __call__(self, image: ByteArray) -> NDArray[np.float64]:
        """uint8 (H, W, 3) to (H, W), min-max normalised to 0..1; a flat map is all zeros."""
        import torch

        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        (found,) = self._processor.post_process_depth_estimation(outputs, target_sizes=[image.shape[:2]])
        return normalised(found["predicted_depth"].double().cpu().numpy())


def normalised(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map with its least value at 0 and its greatest at 1: such estimators know depth up to scale and shift only."""
    low, high = float(depth.min()), float(depth.max())
    return (depth - low) / (high - low) if high > low else np.zeros_like(depth)
