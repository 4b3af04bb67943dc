"""One geometry for image and condition: resize, crop, flip."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lisa.common.errors import LisaError, choose
from lisa.data.samples import ByteArray, Sample, content_hash, describe_size, stack_pictures, unstack_pictures

Resample = Literal["auto", "nearest", "lanczos", "box"]
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_FEW_COLOURS = 64  # a label map has at most that many
_GOLDEN = (5**0.5 - 1) / 2


class PairedTransform:
    """Brings image and condition to one size with the very same crop and flip.

    The shorter side (relative to the target) is resized to fit, the rest is cropped. Where the crop is random, it
    depends on ``(seed, index)`` alone, so that latents can be cached; the flip also depends on ``step``, so that a
    sample is seen both ways. Nothing depends on a global generator. All frames of a clip, and of its condition, are
    treated alike.

    Args:
        size: (height, width) of the result.
        crop: ``center`` or ``random``.
        flip: mirror left and right in half of the (index, step) pairs. Captions that speak of sides then lie.
        seed: of crops and flips.
        condition_resample: how conditions are resized. ``nearest`` keeps label colours pure; ``box`` averages, so that
            thin lines do not vanish when shrunk; ``lanczos`` as for images; ``auto`` takes nearest for 3 to 64
            colours, box for two (lines) and lanczos for more, per picture or clip.
        windows: take another stretch of a longer clip at every visit (:meth:`start`); else always its middle.

    Raises:
        LisaError: an unknown choice or an impossible size.

    Example:
        ``image, condition = PairedTransform((64, 64), crop="random", seed=1)(image, condition, index=7)``
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop: str = "center",
        flip: bool = False,
        seed: int = 0,
        condition_resample: Resample = "auto",
        windows: bool = False,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise LisaError(f"size is {size!r}, it must be a height and a width of at least 1")
        self.size = (int(size[0]), int(size[1]))
        self.crop = choose("crop", crop, ("center", "random"))
        self.flip = flip
        self.seed = seed
        self.condition_resample = choose("condition_resample", condition_resample, ("auto", *_FILTERS))
        self.windows = windows

    @property
    def fingerprint(self) -> str:
        """Hash of what a cached, unflipped result depends on; of a clip's middle."""
        seed = self.seed if self.crop == "random" else None
        return content_hash("transform", self.size, self.crop, seed, self.condition_resample)

    def __call__(
        self, image: ByteArray, condition: ByteArray | None, index: int, step: int = 0
    ) -> tuple[ByteArray, ByteArray | None]:
        """Transform a pair.

        Args:
            image: uint8 (h, w, 3), or a clip (F, h, w, 3).
            condition: the same size, with 3 n channels for n stacked pictures, or None.
            index: the sample's position in its source.
            step: of the training; affects the flip only.

        Returns:
            uint8 (H, W, 3), or (F, H, W, 3), and the same for the condition, or None.

        Raises:
            LisaError: the condition is not as large as the image, or has another number of frames.
        """
        if condition is not None and condition.shape[:-1] != image.shape[:-1]:
            raise LisaError(
                f"image is {describe_size(image)}, its condition {describe_size(condition)}",
                "Image and condition must have the same size",
            )
        mirrored = self.flips(index, step)
        image = _mirror(self.fit(image, index, "lanczos"), mirrored)
        if condition is None:
            return image, None
        pictures = [self.fit(each, index, self._resample(each)) for each in unstack_pictures(condition)]
        return image, _mirror(stack_pictures(pictures, f"sample {index}"), mirrored)

    def sample(self, sample: Sample, index: int, step: int = 0) -> Sample:
        """The same for a whole sample. Its exact truth is dropped if the pixels moved."""
        image, condition = self(sample.image, sample.condition, index, step)
        same = image.shape == sample.image.shape and not self.flips(index, step)
        return dataclasses.replace(sample, image=image, condition=condition, truth=sample.truth if same else None)

    def flips(self, index: int, step: int = 0) -> bool:
        """Is the sample mirrored at this step?"""
        return self.flip and bool(_draw(self.seed, "flip", index, step)[0] < 0.5)

    def start(self, index: int, step: int, spare: int) -> int:
        """The first frame of what is taken of a clip that could begin up to ``spare`` frames later.

        Over the steps the beginnings of a sample are spread evenly: multiples of the golden ratio, modulo 1.
        """
        if not self.windows:
            return spare // 2
        return int((_draw(self.seed, "window", index)[0] + step * _GOLDEN) % 1 * (spare + 1))

    def fit(self, picture: ByteArray, index: int, resample: str) -> ByteArray:
        """Resize and crop a picture (h, w, 3), or every frame of a clip, as for sample ``index``."""
        if picture.ndim == 4:
            return np.stack([self.fit(frame, index, resample) for frame in picture])
        (height, width), (tall, wide) = self.size, self._resized(picture)
        if (tall, wide) != picture.shape[:2]:
            picture = np.asarray(Image.fromarray(picture).resize((wide, tall), _FILTERS[resample]))
        top, left = self._corner(tall - height, wide - width, index)
        return np.ascontiguousarray(picture[top : top + height, left : left + width])

    def _resized(self, picture: ByteArray) -> tuple[int, int]:
        """(height, width) before the crop, of a picture or a clip."""
        (height, width), (h, w) = self.size, picture.shape[-3:-1]
        scale = max(height / h, width / w)
        # Rounding up a hair below the target would leave nothing to crop from.
        return max(height, round(h * scale)), max(width, round(w * scale))

    def _resample(self, condition: ByteArray) -> str:
        if self.condition_resample != "auto":
            return self.condition_resample
        # To count the colours of a clip takes longer than to read it: not where nothing is resized.
        return _resample_for(condition) if self._resized(condition) != condition.shape[-3:-1] else "nearest"

    def _corner(self, spare_rows: int, spare_columns: int, index: int) -> tuple[int, int]:
        if self.crop == "center":
            return spare_rows // 2, spare_columns // 2
        down, right = _draw(self.seed, "crop", index)[:2]
        return int(down * (spare_rows + 1)), int(right * (spare_columns + 1))


def _draw(seed: int, purpose: str, *numbers: int) -> NDArray[np.float64]:
    """Two numbers in [0, 1) that depend on the arguments alone."""
    key = int(content_hash(purpose, seed, list(numbers), length=32), 16)
    return np.random.default_rng(key).random(2)


def _mirror(picture: ByteArray, mirrored: bool) -> ByteArray:
    return np.ascontiguousarray(picture[..., ::-1, :]) if mirrored else picture


def _resample_for(condition: ByteArray) -> str:
    """By the number of colours of a picture, or of all frames of a clip."""
    colours: set[int] = set()
    for frame in condition if condition.ndim == 4 else condition[None]:
        packed = (frame.astype(np.uint32) * np.asarray([1, 256, 65536], np.uint32)).sum(-1)
        colours.update(np.unique(packed).tolist())
        if len(colours) > _FEW_COLOURS:
            return "lanczos"
    return "nearest" if len(colours) > 2 else "box"
