"""What is computed once and kept on disk: what it depends on, how much it is, whether it fits; bfloat16 in files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache, BuildAll, Shapes

CHUNK = 16
#: What is worth a word before it is written, in bytes.
_LARGE = 100 * 2**20

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class CacheJob:
    """Arrays that are computed together: where they are kept, their shapes, and what computes some rows of them.

    ``of_samples``: a row is a sample; else, say, a caption that many of them share.
    """

    store: ArrayCache
    shapes: Shapes
    build: BuildAll
    chunk: int = CHUNK  # rows that are computed at a time
    of_samples: bool = True


def run_jobs(jobs: Mapping[str, CacheJob], folder: Path, say: Callable[[str], None] | None = None) -> dict[str, Arrays]:
    """The arrays of every job, read-only; what is missing of them is computed first.

    Args:
        jobs: by their names in ``data.cache``.
        folder: of the cache.
        say: is told how much there is to write, if it is much.

    Raises:
        LisaError: the disk has not enough space; nothing has been written then.
    """
    _check_space({item: job.store.missing_bytes(job.shapes) for item, job in jobs.items()}, folder, say)
    _build_in_step([job for job in jobs.values() if job.of_samples])
    for job in jobs.values():
        if not job.of_samples:
            _build_in_step([job])
    return {
        item: {name: job.store.load(name, *kind) for name, kind in job.shapes.items()} for item, job in jobs.items()
    }


def _build_in_step(jobs: Sequence[CacheJob]) -> None:
    """Of all jobs always the one that is furthest behind goes on, so that they want the same samples at one time.

    Every process takes them in the same order, so that none waits for another that waits for it.
    """
    with ExitStack() as stack:
        going = [job.store.steps(job.shapes, job.build, chunk=job.chunk) for job in jobs]
        for steps in going:
            stack.callback(steps.close)
        rows = [next(steps, None) for steps in going]
        while behind := [(done, number) for number, done in enumerate(rows) if done is not None]:
            _, number = min(behind)
            rows[number] = next(going[number], None)


def _check_space(sizes: Mapping[str, int], folder: Path, say: Callable[[str], None] | None) -> None:
    total = sum(sizes.values())
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    parts = ", ".join(f"{item} {_size(size)}" for item, size in sizes.items() if size)
    if total > free:
        largest = max(sizes, key=lambda item: sizes[item])
        raise LisaError(
            f"the cache in {str(folder)!r} needs {_size(total)} more ({parts}); {_size(free)} are free there",
            f"Leave {largest} out of data.cache, to encode it at every visit, or set data.cache_dir to a larger disk",
        )
    if say is not None and total >= _LARGE:
        say(f"the cache in {str(folder)!r} will take {_size(total)} ({parts})")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


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


def to_array(tensor: Tensor) -> np.ndarray:
    """For a file, without loss: numpy has no bfloat16, whose bits are kept as int16."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def from_array(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """What was given to :func:`to_array`, of ``dtype``."""
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
