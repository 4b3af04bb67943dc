"""From samples to batches on the device: encoded once and read from the cache, or encoded on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache, cache_key
from lisa.data.samples import HasWindows, Sample, Source, captions_of
from lisa.data.transforms import PairedTransform
from lisa.mains.base import Context, MainNetwork
from lisa.train.batches import BatchPlan
from lisa.train.caching import CHUNK, Arrays, CacheJob, modules_hash, run_jobs
from lisa.train.contexts import CaptionContexts, Contexts, FrameContexts, pixels_to_tensor

__all__ = ["Batch", "EncodedData", "batches", "modules_hash"]


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    ``visits``: numbers that key the random draws (unique over the run); ``moments`` (B, 2 C, h, w): scaled posterior
    mean and standard deviation; ``condition`` (B, 3 n, H, W) in 0..1 for n stacked pictures, or the latent of one
    (B, C, h, w); ``context`` of the captions, ``empty`` of no caption.

    Of clips: ``moments`` (B, 2 C, f, h, w); ``condition`` (B, 3 n, F, H, W) of every frame, or latents (B, C, f, h, w);
    where the main network reads first frames, ``context`` is theirs, and ``empty`` has only what is dropped of it.
    """

    visits: list[int]
    moments: Tensor
    condition: Tensor
    context: Context
    empty: Context


class EncodedData:
    """A source, encoded for a main network.

    Where nothing that is made of pixels is cached and ``transform.windows`` says so, every visit sees another stretch
    of a longer clip; else all see its middle.

    Args:
        source: the samples; for a main network that makes clips, clips of as many frames each.
        main: encodes them; its encoders are used only while something is not cached.
        transform: crop and flip.
        cache: the folder of caches.
        cached: which of ``latents``, ``text`` and ``conditions`` are computed once and kept; with ``latents`` those of
            the conditions, too, where the side network reads them: else the autoencoder would run at every step.
            ``text`` is the context, also where it is made of first frames.
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
        self._frames = (len(source[0].image),) if main.video else ()
        self._chunk = max(1, CHUNK // (self._frames or (1,))[0])  # samples that are encoded together
        self._cache = cache
        self._kept: Callable[[int], Sample] | None = None
        framed = main.context_reads == "frame"
        self._contexts: Contexts = (
            FrameContexts(main, source, transform, self._sample, self.variants, self._chunk)
            if framed
            else CaptionContexts(main, self.captions)
        )
        self._windows = transform.windows and not set(cached) - (set() if framed else {"text"})
        with self._each_read_once():
            arrays = run_jobs(self._jobs(cached), cache, say)
        self._moments = arrays["latents"]["moments"] if "latents" in arrays else None
        self._conditions = next(iter(arrays["conditions"].values())) if "conditions" in arrays else None
        self._contexts.arrays = arrays.get("text")
        self.empty = {name: value.float().cpu() for name, value in main.encode_unconditional().items()}

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: they read samples, and need no networks (which may not be picklable)."""
        return {**self.__dict__, "main": None}

    def read(self, index: int, epoch: int) -> tuple[np.ndarray, ...]:
        """Of one sample: moments, or uint8 pixels where they are not cached; the condition, or its cached latent.

        And what its context is made of, where that is neither known nor cached.
        """
        mirrored = int(self.transform.flips(index, epoch))
        reads_frame = isinstance(self._contexts, FrameContexts) and self._contexts.arrays is None
        if self._moments is not None and self._conditions is not None and not reads_frame:
            return self._moments[index, mirrored], self._conditions[index, mirrored]
        sample = self._sample(index, mirrored, epoch)
        assert sample.condition is not None, "_cropped sees to it"
        first = sample.image if self._moments is None else self._moments[index, mirrored]
        condition = sample.condition if self._conditions is None else self._conditions[index, mirrored]
        return (first, condition, *(self._contexts.read(sample) if reads_frame else ()))

    def collate(self, visits: Sequence[int], parts: Sequence[tuple[np.ndarray, ...]], device: torch.device) -> Batch:
        """Put samples together and encode what is not cached."""
        first = torch.from_numpy(np.stack([part[0] for part in parts]))
        condition = torch.from_numpy(np.stack([part[1] for part in parts])).to(device)
        if condition.dtype == torch.uint8:
            condition = self._condition(condition)
        moments = first if self._moments is not None else self.main.encode_moments(pixels_to_tensor(first.to(device)))
        return Batch(
            visits=list(visits),
            # An encoder may answer channels last, and convolutions round differently then.
            moments=moments.to(device, torch.float32).contiguous(),
            condition=condition.to(device),
            context=self._contexts(visits, [part[2:] for part in parts], device),
            empty={name: value.to(device) for name, value in self.empty.items()},
        )

    def _jobs(self, cached: Sequence[str]) -> dict[str, CacheJob]:
        """What is computed once, of ``cached``."""
        jobs: dict[str, CacheJob] = {}
        if "latents" in cached:
            jobs["latents"] = self._moments_job()
        if "conditions" in cached or (self.reads == "latents" and "latents" in cached):
            jobs["conditions"] = self._conditions_job()
        if "text" in cached:
            jobs["text"] = self._contexts.job(self._cache)
        return jobs

    @contextmanager
    def _each_read_once(self) -> Iterator[None]:
        """While this runs, the samples of a chunk are kept, for all caches that are made of them."""
        self._kept = lru_cache(maxsize=self._chunk)(lambda index: self._cropped(self.source[index], index))
        try:
            yield
        finally:
            self._kept = None

    def _sample(self, index: int, mirrored: int, epoch: int = 0) -> Sample:
        """A sample as it is encoded."""
        if self._windows and isinstance(self.source, HasWindows):
            window = self.source.window(index, self.transform.start(index, epoch, self.source.spare(index)))
            sample = self._cropped(window, index)
        else:
            sample = self._cropped(self.source[index], index) if self._kept is None else self._kept(index)
        if not mirrored:
            return sample
        assert sample.condition is not None, "_cropped sees to it"
        image, condition = (picture[..., ::-1, :].copy() for picture in (sample.image, sample.condition))
        return replace(sample, image=image, condition=condition)

    def _cropped(self, sample: Sample, index: int) -> Sample:
        image, condition = self._still(sample.image, sample.condition, index)
        assert condition is not None, "check_source refuses sources without conditions"
        return replace(sample, image=image, condition=condition, truth=None)

    def _moments_job(self) -> CacheJob:
        def encode(rows: slice) -> Arrays:
            variants = []
            for mirrored in range(self.variants):
                images = np.stack([self._sample(i, mirrored).image for i in range(rows.start, rows.stop)])
                device = next(self.main.network.parameters()).device
                variants.append(self.main.encode_moments(pixels_to_tensor(torch.from_numpy(images).to(device))))
            return {"moments": torch.stack(variants, 1).float().cpu().numpy()}

        shape = (len(self), self.variants, 2 * self.main.latent_channels, *self._latent_size())
        key = cache_key(
            kind="moments",
            images=self.source.part_fingerprint("image"),
            transform=self.transform.fingerprint,
            variants=self.variants,
            encoder=modules_hash(self.main.encoder_modules("image")),
        )
        return CacheJob(ArrayCache(self._cache, key), {"moments": (shape, np.float32)}, encode, self._chunk)

    def _conditions_job(self) -> CacheJob:
        def read(rows: slice) -> np.ndarray:
            numbers = range(rows.start, rows.stop)
            return np.array([[self._sample(i, m).condition for m in range(self.variants)] for i in numbers])

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
            size = (len(self), self.variants, *self._frames, *self.transform.size, 3 * self.conditions)
            shapes = {"conditions": (size, np.uint8)}
            return CacheJob(store, shapes, lambda rows: {"conditions": read(rows)}, self._chunk)
        encoder = modules_hash(self.main.encoder_modules("image"))
        store = ArrayCache(self._cache, cache_key(kind="condition latents", encoder=encoder, **facts))
        shape = (len(self), self.variants, self.main.condition_latent_channels, *self._latent_size())
        return CacheJob(store, {"condition_latents": (shape, np.float32)}, encode, self._chunk)

    def _condition(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3 n), or (B, F, H, W, 3 n), to what the side network reads."""
        unit = pixels.movedim(-1, 1).float() / 255
        return unit if self.reads == "pixels" else self.main.encode_condition(unit)

    def _latent_size(self) -> tuple[int, ...]:
        frames = [self.main.latent_frames(count) for count in self._frames]
        return (*frames, *[side // self.main.latent_factor for side in self.transform.size])


class _Visits(Dataset[tuple[int, Any]]):
    """What worker processes read: a visit is ``epoch * count + index``."""

    def __init__(self, read: Callable[[int, int], tuple[np.ndarray, ...]], count: int) -> None:
        self.read, self.count = read, count

    def __getitem__(self, visit: int) -> tuple[int, Any]:
        try:
            return visit, self.read(visit % self.count, visit // self.count)
        except LisaError as error:  # handed over as it is: DataLoader would wrap a worker's error into a traceback
            return visit, error


def _leave_stopping_to_the_training(worker: int) -> None:
    """SIGTERM is sent to a whole process group (by Slurm, say): a worker that obeyed would take the last steps along,
    since the training writes its checkpoint after the batch that it waits for. Workers end with it in any case.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        worker_init_fn=_leave_stopping_to_the_training,
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
