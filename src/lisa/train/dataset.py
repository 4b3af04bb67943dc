"""From samples to batches on the device: encoded once and read from the cache, or encoded on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache, cache_key
from lisa.data.samples import Source, captions_of
from lisa.data.transforms import PairedTransform
from lisa.mains.base import Context, MainNetwork
from lisa.train.batches import BatchPlan
from lisa.train.caching import Arrays, CacheJob, from_array, run_jobs, to_array

# Goes up when encoders compute, or files hold, something else for the same weights.
_TEXT_FORMAT = 2


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    ``visits``: numbers that key the random draws (unique over the run); ``moments`` (B, 2 C, h, w): scaled posterior
    mean and standard deviation; ``condition`` (B, 3 n, H, W) in 0..1 for n stacked pictures, or the latent of one
    (B, C, h, w); ``context`` of the captions, ``empty`` of no caption.
    """

    visits: list[int]
    moments: Tensor
    condition: Tensor
    context: Context
    empty: Context


class EncodedData:
    """A source, encoded for a main network.

    Args:
        source: the samples.
        main: encodes them; its encoders are used only while something is not cached.
        transform: crop and flip.
        cache: the folder of caches.
        cached: which of ``latents``, ``text`` and ``conditions`` are computed once and kept; with ``latents`` those of
            the conditions, too, where the side network reads them: else the autoencoder would run at every step.
        reads: what the side network reads: ``pixels`` of the condition, or their ``latents``.
        conditions: how many condition pictures of a sample are stacked.
        say: is told how much there is to write before a long caching starts.

    Raises:
        LisaError: the disk has not enough space for what is to be cached.
    """

    def __init__(
        self,
        source: Source,
        main: MainNetwork,
        transform: PairedTransform,
        cache: Path,
        cached: Sequence[str],
        reads: str = "pixels",
        conditions: int = 1,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self.main, self.transform, self.reads = source, main, transform, reads
        self.conditions = conditions
        self.variants = 2 if transform.flip else 1  # as it is, mirrored
        self._still = PairedTransform(
            transform.size, transform.crop, False, transform.seed, transform.condition_resample
        )
        self.captions = captions_of(source)
        self._cache = cache
        jobs: dict[str, CacheJob] = {}
        if "latents" in cached:
            jobs["latents"] = self._moments_job()
        if "conditions" in cached or (reads == "latents" and "latents" in cached):
            jobs["conditions"] = self._conditions_job()
        if "text" in cached:
            jobs["text"] = self._text_job()
        arrays = run_jobs(jobs, cache, say)
        self._moments = arrays["latents"]["moments"] if "latents" in arrays else None
        self._conditions = next(iter(arrays["conditions"].values())) if "conditions" in arrays else None
        self._contexts = arrays.get("text")
        self.empty = {name: value.float().cpu() for name, value in main.encode_unconditional().items()}

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of one sample: moments, or uint8 pixels where they are not cached; the condition, or its cached latent."""
        mirrored = int(self.transform.flips(index, epoch))
        if self._moments is not None and self._conditions is not None:
            return self._moments[index, mirrored], self._conditions[index, mirrored]
        image, condition = self._pixels(index, mirrored)
        return image if self._moments is None else self._moments[index, mirrored], condition

    def collate(
        self, visits: Sequence[int], parts: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device
    ) -> Batch:
        """Put samples together and encode what is not cached."""
        first = torch.from_numpy(np.stack([part[0] for part in parts]))
        condition = torch.from_numpy(np.stack([part[1] for part in parts])).to(device)
        if condition.dtype == torch.uint8:
            condition = self._condition(condition)
        moments = first if self._moments is not None else self.main.encode_moments(_pixels_to_tensor(first, device))
        return Batch(
            visits=list(visits),
            # An encoder may answer channels last, and convolutions round differently then.
            moments=moments.to(device, torch.float32).contiguous(),
            condition=condition.to(device),
            context=self.context([visit % len(self) for visit in visits], device),
            empty={name: value.to(device) for name, value in self.empty.items()},
        )

    def context(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """The encoded captions of some samples."""
        if self._contexts is None:
            encoded = self.main.encode_text([self.captions[i] for i in indices])
            return {name: value.to(device) for name, value in encoded.items()}
        rows = [self._rows[self.captions[i]] for i in indices]
        return {name: from_array(array[rows], self._kinds[name]).to(device) for name, array in self._contexts.items()}

    def _pixels(self, index: int, mirrored: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source[index]
        image, condition = self._still(sample.image, sample.condition, index)
        assert condition is not None, "check_source refuses sources without conditions"
        return (image[:, ::-1].copy(), condition[:, ::-1].copy()) if mirrored else (image, condition)

    def _moments_job(self) -> CacheJob:
        def encode(rows: slice) -> Arrays:
            variants = []
            for mirrored in range(self.variants):
                images = np.stack([self._pixels(i, mirrored)[0] for i in range(rows.start, rows.stop)])
                device = next(self.main.network.parameters()).device
                variants.append(self.main.encode_moments(_pixels_to_tensor(torch.from_numpy(images), device)))
            return {"moments": torch.stack(variants, 1).float().cpu().numpy()}

        shape = (len(self), self.variants, 2 * self.main.latent_channels, *self._latent_size())
        key = cache_key(
            kind="moments",
            images=self.source.part_fingerprint("image"),
            transform=self.transform.fingerprint,
            variants=self.variants,
            encoder=modules_hash(self.main.encoder_modules("image")),
        )
        return CacheJob(ArrayCache(self._cache, key), {"moments": (shape, np.float32)}, encode)

    def _conditions_job(self) -> CacheJob:
        def read(rows: slice) -> np.ndarray:
            numbers = range(rows.start, rows.stop)
            return np.stack([[self._pixels(i, m)[1] for m in range(self.variants)] for i in numbers])

        def encode(rows: slice) -> Arrays:
            pixels = torch.from_numpy(read(rows))
            latents = self._condition(pixels.flatten(0, 1)).float().cpu()
            return {"condition_latents": latents.unflatten(0, pixels.shape[:2]).numpy()}

        facts = {
            "conditions": self.source.part_fingerprint("condition"),
            "transform": self.transform.fingerprint,
            "variants": self.variants,
        }
        if self.reads == "pixels":
            store = ArrayCache(self._cache, cache_key(kind="conditions", **facts))
            size = (len(self), self.variants, *self.transform.size, 3 * self.conditions)
            return CacheJob(store, {"conditions": (size, np.uint8)}, lambda rows: {"conditions": read(rows)})
        encoder = modules_hash(self.main.encoder_modules("image"))
        store = ArrayCache(self._cache, cache_key(kind="condition latents", encoder=encoder, **facts))
        shape = (len(self), self.variants, self.main.condition_latent_channels, *self._latent_size())
        return CacheJob(store, {"condition_latents": (shape, np.float32)}, encode)

    def _condition(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3 n) to what the side network reads."""
        unit = pixels.permute(0, 3, 1, 2).float() / 255
        return unit if self.reads == "pixels" else self.main.encode_condition(unit)

    def _latent_size(self) -> tuple[int, int]:
        height, width = self.transform.size
        return height // self.main.latent_factor, width // self.main.latent_factor

    def _text_job(self) -> CacheJob:
        """One row per different caption; each array in the type that the encoders, run as in training, give it in."""
        different = sorted(set(self.captions))
        self._rows = {caption: row for row, caption in enumerate(different)}
        encoder = modules_hash(self.main.encoder_modules("text"))
        key = cache_key(kind="text", format=_TEXT_FORMAT, captions=different, encoder=encoder)
        examples = self.main.encode_text([""])
        self._kinds = {name: example.dtype for name, example in examples.items()}

        def encode(rows: slice) -> Arrays:
            return {name: to_array(value) for name, value in self.main.encode_text(different[rows]).items()}

        shapes = {
            name: ((len(different), *example.shape[1:]), to_array(example).dtype) for name, example in examples.items()
        }
        return CacheJob(ArrayCache(self._cache, key), shapes, encode)


def modules_hash(modules: Sequence[nn.Module]) -> str:
    """A hash of weights and configurations: the same model gives the same key wherever it was loaded from."""
    digest = hashlib.sha256()
    for module in modules:
        config = getattr(module, "config", {})
        described = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Paths and versions say where a model came from, not what it computes.
        plain = {
            k: v for k, v in described.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")
        }
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


class _Visits(Dataset[tuple[int, Any]]):
    """What worker processes read: a visit is ``epoch * count + index``."""

    def __init__(self, read: Callable[[int, int], tuple[np.ndarray, np.ndarray]], count: int) -> None:
        self.read, self.count = read, count

    def __getitem__(self, visit: int) -> tuple[int, Any]:
        try:
            return visit, self.read(visit % self.count, visit // self.count)
        except LisaError as error:  # handed over as it is: DataLoader would wrap a worker's error into a traceback
            return visit, error


def batches(data: EncodedData, plan: BatchPlan, start: int, device: torch.device, workers: int) -> Iterator[Batch]:
    """Batches from number ``start`` on, for ever.

    Raises:
        LisaError: a sample cannot be read.
    """
    loader = DataLoader(
        _Visits(data.read, len(data)),
        batch_sampler=_Plan(plan, start),
        num_workers=workers,
        collate_fn=list,
        persistent_workers=False,
        generator=torch.Generator(),  # its seeds for workers must not come from the training's random state
    )
    for items in loader:
        visits, parts = zip(*items, strict=True)
        for part in parts:
            if isinstance(part, LisaError):
                raise part
        yield data.collate(visits, parts, device)


class _Plan:
    """The plan as DataLoader wants it: an endless batch sampler."""

    def __init__(self, plan: BatchPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[list[int]]:
        return self.plan.start_at(self.start)


def _pixels_to_tensor(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to -1..1 (B, 3, H, W)."""
    return images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
