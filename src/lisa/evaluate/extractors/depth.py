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
        return normalised(self._read(image, [image.shape[:2]]))

    def raw(self, image: ByteArray) -> NDArray[np.float64]:
        """uint8 (H, W, 3) to what the network says, at the size at which it says it: (h, w), not normalised."""
        return self._read(image, None)

    def _read(self, image: ByteArray, sizes: list[tuple[int, ...]] | None) -> NDArray[np.float64]:
        import torch

        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        (found,) = self._processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        return np.asarray(found["predicted_depth"].double().cpu().numpy(), np.float64)


def normalised(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map with its least value at 0 and its greatest at 1: such estimators know depth up to scale and shift only."""
    low, high = float(depth.min()), float(depth.max())
    return (depth - low) / (high - low) if high > low else np.zeros_like(depth)


def levels_by_maximum(depth: NDArray[np.float64], size: tuple[int, int]) -> ByteArray:
    """A map (h, w) divided by its greatest value, as whole levels 0..255, then resized to ``size`` (H, W).

    As ControlNet++ reads what was made: other than :func:`normalised`, it keeps where the depth begins.
    """
    from PIL import Image

    high = float(depth.max())
    shares = np.clip(depth / high, 0, 1) if high > 0 else np.zeros_like(depth)
    levels = Image.fromarray((shares * 255).astype(np.uint8))
    return np.asarray(levels.resize(size[::-1], Image.Resampling.BILINEAR))
