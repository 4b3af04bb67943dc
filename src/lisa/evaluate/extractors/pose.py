"""People and their joints, as a detector and a pose estimator read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError
from lisa.data.samples import ByteArray
from lisa.evaluate.extractors.weights import Weights, load_model, load_processor

_PERSON = "person"
_DETECTED, _SEEN = 0.5, 0.3  # least score of a person, and of a joint


@dataclass(frozen=True)
class People:
    """The people of a picture, in pixels.

    Attributes:
        boxes: (P, 4), left, top, right, bottom.
        joints: (P, J, 2), x and y.
        seen: (P, J), whether the joint was found.
    """

    boxes: NDArray[np.float64]
    joints: NDArray[np.float64]
    seen: NDArray[np.bool_]


class PoseReader:
    """ViTPose on the people that an object detector of transformers finds (RT-DETR, DETR ...).

    Raises:
        LisaError: the weights are of something else, or the detector knows no persons.
    """

    def __init__(self, weights: Weights, detector: Weights) -> None:
        self.weights, self.detector_weights = weights, detector
        self._detector = load_model("AutoModelForObjectDetection", detector)
        self._detector_processor = load_processor("AutoImageProcessor", detector)
        self._model = load_model("VitPoseForPoseEstimation", weights)
        self._processor = load_processor("AutoImageProcessor", weights)
        names = self._detector.config.id2label
        self._persons = [number for number, name in names.items() if name.lower() == _PERSON]
        if not self._persons:
            raise LisaError(
                f"the detector {detector.source!r} knows no class {_PERSON!r}",
                "Name one trained on COCO with --detector",
            )

    def __call__(self, image: ByteArray) -> People:
        """The people of uint8 (H, W, 3)."""
        import torch

        boxes = self._find(image)
        if not len(boxes):
            return People(boxes, np.zeros((0, 0, 2)), np.zeros((0, 0), bool))
        sizes = boxes[:, 2:] - boxes[:, :2]
        corners = [np.concatenate([boxes[:, :2], sizes], 1)]  # left, top, width, height
        inputs = self._processor(images=image, boxes=corners, return_tensors="pt").to(self._model.device)
        if getattr(self._model.config.backbone_config, "num_experts", 1) > 1:  # ViTPose++: its COCO expert
            inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=self._model.device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        (found,) = self._processor.post_process_pose_estimation(outputs, boxes=corners)
        joints = np.stack([person["keypoints"].double().cpu().numpy() for person in found])
        scores = np.stack([person["scores"].double().cpu().numpy() for person in found])
        return People(boxes, joints, scores >= _SEEN)

    def _find(self, image: ByteArray) -> NDArray[np.float64]:
        import torch

        inputs = self._detector_processor(images=image, return_tensors="pt").to(self._detector.device)
        with torch.no_grad():
            outputs = self._detector(**inputs)
        (found,) = self._detector_processor.post_process_object_detection(
            outputs, threshold=_DETECTED, target_sizes=[image.shape[:2]]
        )
        chosen = torch.isin(found["labels"].cpu(), torch.tensor(self._persons))
        return np.asarray(found["boxes"].cpu()[chosen].double().numpy()).reshape(-1, 4)
