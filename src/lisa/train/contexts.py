"""What networks are told beside the noisy latent, encoded: captions, or the first frames of clips; cached or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lisa.data.cache import ArrayCache, cache_key
from lisa.data.samples import Sample, Source
from lisa.data.transforms import PairedTransform
from lisa.mains.base import MainNetwork
from lisa.pairs.base import FRAME_RATE, MOTION
from lisa.train.caching import Arrays, CacheJob, from_array, modules_hash, to_array

# Goes up when encoders compute, or files hold, something else for the same weights.
_FORMAT = 2


class Contexts(Protocol):
    """The context of samples."""

    arrays: Arrays | None  # what :meth:`job` has computed, once it has run

    def job(self, cache: Path) -> CacheJob:
        """Encodes all of it, to be kept."""

    def read(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """What must be read of a sample to encode its context, where it is not kept."""

    def __call__(
        self, visits: Sequence[int], read: Sequence[tuple[np.ndarray, ...]], device: torch.device
    ) -> dict[str, Tensor]:
        """The context of some visits; ``read``: what :meth:`read` gave for each, where it is not kept."""


class CaptionContexts:
    """Of captions: one row per different one, each array in the type that the encoders, run as in training, give it in.

    Args:
        main: encodes them.
        captions: of every sample.
    """

    def __init__(self, main: MainNetwork, captions: Sequence[str]) -> None:
        self.main, self.captions = main, captions
        self.arrays: Arrays | None = None

    def __getstate__(self) -> dict[str, Any]:
        """See :meth:`lisa.train.dataset.EncodedData.__getstate__`."""
        return {**self.__dict__, "main": None}

    def job(self, cache: Path) -> CacheJob:
        """See :class:`Contexts`."""
        different = sorted(set(self.captions))
        self._rows = {caption: row for row, caption in enumerate(different)}
        encoder = modules_hash(self.main.encoder_modules("text"))
        key = cache_key(kind="text", format=_FORMAT, captions=different, encoder=encoder)
        examples = self.main.encode_text([""])
        self._kinds = {name: example.dtype for name, example in examples.items()}

        def encode(rows: slice) -> Arrays:
            return {name: to_array(value) for name, value in self.main.encode_text(different[rows]).items()}

        shapes = {
            name: ((len(different), *example.shape[1:]), to_array(example).dtype) for name, example in examples.items()
        }
        return CacheJob(ArrayCache(cache, key), shapes, encode, of_samples=False)

    def read(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """Nothing: captions are known."""
        return ()

    def __call__(
        self, visits: Sequence[int], read: Sequence[tuple[np.ndarray, ...]], device: torch.device
    ) -> dict[str, Tensor]:
        """See :class:`Contexts`."""
        captions = [self.captions[visit % len(self.captions)] for visit in visits]
        if self.arrays is None:
            return {name: value.to(device) for name, value in self.main.encode_text(captions).items()}
        rows = [self._rows[caption] for caption in captions]
        return {name: from_array(array[rows], self._kinds[name]).to(device) for name, array in self.arrays.items()}


class FrameContexts:
    """Of the first frames of clips, their rates and motions: one row per sample, and one more where it is mirrored.

    Args:
        main: encodes them (``encode_frame``).
        source: of the clips.
        transform: tells which visits are mirrored.
        sample: (number, mirrored) -> the sample as it is encoded.
        variants: 2 where samples are mirrored, else 1.
        chunk: how many samples are read together.
    """

    def __init__(
        self,
        main: MainNetwork,
        source: Source,
        transform: PairedTransform,
        sample: Callable[[int, int], Sample],
        variants: int,
        chunk: int,
    ) -> None:
        self.main, self.source, self.transform = main, source, transform
        self.sample, self.variants, self.chunk = sample, variants, chunk
        self.arrays: Arrays | None = None
        self._keys = list(source.keys)

    def __getstate__(self) -> dict[str, Any]:
        """See :meth:`lisa.train.dataset.EncodedData.__getstate__`."""
        return {**self.__dict__, "main": None}

    def job(self, cache: Path) -> CacheJob:
        """See :class:`Contexts`."""
        key = cache_key(
            kind="frame context",
            format=_FORMAT,
            images=self.source.part_fingerprint("image"),
            transform=self.transform.fingerprint,
            variants=self.variants,
            encoder=modules_hash(self.main.encoder_modules("text")),
            extractor=self._extractor(),
        )
        examples = self._rows(slice(0, 1))
        self._kinds = {name: example.dtype for name, example in examples.items()}

        def encode(rows: slice) -> Arrays:
            return {name: to_array(value) for name, value in self._rows(rows).items()}

        shapes = {
            name: ((len(self._keys), *example.shape[1:]), to_array(example).dtype) for name, example in examples.items()
        }
        return CacheJob(ArrayCache(cache, key), shapes, encode, self.chunk)

    def _extractor(self) -> Any:
        """How frames are brought to the image encoder, which holds nothing of it."""
        extractor = getattr(getattr(self.main, "pipeline", None), "feature_extractor", None)
        return None if extractor is None else extractor.to_dict()

    def read(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """The first frame, and rate and motion or what is taken for them where they are not known."""
        known = (FRAME_RATE if sample.rate is None else sample.rate, MOTION if sample.motion is None else sample.motion)
        return sample.image[0], np.array(known, np.float32)

    def __call__(
        self, visits: Sequence[int], read: Sequence[tuple[np.ndarray, ...]], device: torch.device
    ) -> dict[str, Tensor]:
        """See :class:`Contexts`."""
        places = [divmod(visit, len(self._keys)) for visit in visits]
        indices = [index for _, index in places]
        if self.arrays is None:
            return {name: value.to(device) for name, value in self._encode(indices, read, device).items()}
        rows = indices, [int(self.transform.flips(index, epoch)) for epoch, index in places]
        return {name: from_array(array[rows], self._kinds[name]).to(device) for name, array in self.arrays.items()}

    def _rows(self, rows: slice) -> dict[str, Tensor]:
        """Of some samples, (samples, variants, ...)."""
        places = [(index, mirrored) for index in range(rows.start, rows.stop) for mirrored in range(self.variants)]
        read = [self.read(self.sample(index, mirrored)) for index, mirrored in places]
        device = next(self.main.network.parameters()).device
        encoded = self._encode([index for index, _ in places], read, device)
        return {name: value.unflatten(0, (-1, self.variants)) for name, value in encoded.items()}

    def _encode(
        self, indices: Sequence[int], read: Sequence[tuple[np.ndarray, ...]], device: torch.device
    ) -> dict[str, Tensor]:
        frames, facts = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*read, strict=True))
        pixels, keys = pixels_to_tensor(frames), [self._keys[index] for index in indices]
        return self.main.encode_frame(pixels, facts[:, 0], facts[:, 1], keys)


def pixels_to_tensor(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to -1..1 (B, 3, H, W); clips (B, F, H, W, 3) to (B, 3, F, H, W)."""
    return images.movedim(-1, 1).float() / 127.5 - 1
