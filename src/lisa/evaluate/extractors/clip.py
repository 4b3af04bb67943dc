"""CLIP's embeddings of pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.data.samples import ByteArray
from lisa.evaluate.extractors.weights import Weights, load_model, load_processor

_TOGETHER = 32


class ClipReader:
    """A CLIP model of transformers.

    Raises:
        LisaError: the weights are of something else.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._model = load_model("CLIPModel", weights)
        self._processor = load_processor("AutoImageProcessor", weights)
        self._tokenizer = load_processor("AutoTokenizer", weights)

    def images(self, images: Sequence[ByteArray]) -> NDArray[np.float64]:
        """Embeddings (N, D) of uint8 (H, W, 3) each."""

        def embed(chosen: Sequence[ByteArray]) -> Any:
            inputs = self._processor(images=list(chosen), return_tensors="pt").to(self._model.device)
            return self._model.visual_projection(self._model.vision_model(**inputs).pooler_output)

        return self._in_batches(embed, images)

    def captions(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Embeddings (N, D); what is longer than the model reads (77 tokens) is cut."""

        def embed(chosen: Sequence[str]) -> Any:
            inputs = self._tokenizer(list(chosen), return_tensors="pt", padding=True, truncation=True)
            return self._model.text_projection(self._model.text_model(**inputs.to(self._model.device)).pooler_output)

        return self._in_batches(embed, captions)

    def _in_batches(self, embed: Any, items: Sequence[Any]) -> NDArray[np.float64]:
        import torch

        with torch.no_grad():
            parts = [embed(items[i : i + _TOGETHER]).double().cpu() for i in range(0, len(items), _TOGETHER)]
        return np.asarray(torch.cat(parts).numpy())
