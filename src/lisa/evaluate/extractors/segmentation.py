"""Classes of pixels, as a segmenter reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray
from lisa.evaluate.extractors.weights import Weights, load_model, load_processor


class SegmentationReader:
    """A segmenter of transformers: universal (Mask2Former, MaskFormer, OneFormer) or semantic (SegFormer, UPerNet ...).

    Raises:
        LisaError: the weights are of something else.
    """

    def __init__(self, weights: Weights) -> None:
        from transformers.models.auto import modeling_auto

        from lisa.common.model_folders import read_json

        self.weights = weights
        kind = read_json(weights.folder / "config.json").get("model_type")
        universal = kind in modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
        name = "AutoModelForUniversalSegmentation" if universal else "AutoModelForSemanticSegmentation"
        self._model = load_model(name, weights)
        self._processor = load_processor("AutoImageProcessor", weights)
        self.classes: int = self._model.config.num_labels

    def __call__(self, image: ByteArray) -> NDArray[np.int64]:
        """uint8 (H, W, 3) to the class of each pixel, (H, W)."""
        import torch

        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        found = self._processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
        return np.asarray(found[0].cpu().numpy(), np.int64)
