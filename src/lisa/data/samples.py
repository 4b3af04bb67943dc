"""What a data set gives: samples, and the protocol that every source of them follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError

ByteArray = NDArray[np.uint8]
#: What a cached array may depend on: the pictures, the conditions, or the captions of a source.
Part = Literal["image", "condition", "caption"]
PARTS: tuple[Part, ...] = ("image", "condition", "caption")


@dataclass(frozen=True, eq=False)
class Sample:
    """One training or evaluation example: a picture, or a clip.

    Attributes:
        key: a stable name, unique within its source (for folders the relative path without its suffix).
        image: uint8 (H, W, 3); of a clip (F, H, W, 3).
        condition: uint8 (H, W, 3), or (H, W, 3 n) for n condition pictures stacked; None where the source has none.
            Of a clip, of every frame: (F, H, W, 3 n).
        caption: the words; may be empty.
        truth: exact knowledge about the picture that evaluation uses (procedural scenes have it), or None.
        rate: frames per second of a clip, where that is known.
        motion: how much moves in a clip, as Stable Video Diffusion counts it (its motion bucket id, 0 to 255), where
            that is known.
    """

    key: str
    image: ByteArray
    condition: ByteArray | None
    caption: str
    truth: Mapping[str, Any] | None = None
    rate: float | None = None
    motion: float | None = None


class LazyTruth(Mapping[str, Any]):
    """A truth some of whose values are computed when they are first asked for: training never does.

    Args:
        ready: values by name.
        later: what computes further values, by name.
    """

    def __init__(self, ready: Mapping[str, Any], later: Mapping[str, Callable[[], Any]]) -> None:
        self._ready, self._later = dict(ready), dict(later)

    def __getitem__(self, name: str) -> Any:
        if name not in self._ready:
            self._ready[name] = self._later[name]()
        return self._ready[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._ready, **self._later})

    def __len__(self) -> int:
        return len({**self._ready, **self._later})


@runtime_checkable
class Source(Protocol):
    """Random access to samples; the same index always gives the same sample."""

    @property
    def name(self) -> str:
        """What to call the source in messages and records."""

    @property
    def keys(self) -> Sequence[str]:
        """The key of every sample, in order, without loading any picture."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes if and only if something that affects the samples does."""

    def part_fingerprint(self, part: Part) -> str:
        """The same for one part of the samples: latents depend on the images, not on the captions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample; raises LisaError where it cannot be read, IndexError past the end."""


@runtime_checkable
class HasCaptions(Protocol):
    """A source that knows its captions without loading any picture (text embeddings are cached from them)."""

    @property
    def captions(self) -> Sequence[str]:
        """The caption of every sample, in order."""


@runtime_checkable
class HasWindows(Protocol):
    """A source of clips that are longer than what a sample takes of them. As an item, each gives its middle."""

    def spare(self, index: int) -> int:
        """How many frames later a sample could begin, at most."""

    def window(self, index: int, start: int) -> Sample:
        """The sample that begins at frame ``start``, of 0 to :meth:`spare`."""


def captions_of(source: Source) -> list[str]:
    """The captions of a source, without decoding pictures where it can do so."""
    return list(source.captions) if isinstance(source, HasCaptions) else [s.caption for s in iterate(source)]


def iterate(source: Source) -> Iterator[Sample]:
    """All samples of a source in order."""
    return (source[i] for i in range(len(source)))


class Subset:
    """Some samples of a source, as a source. ``indices`` are positions in ``parent``."""

    def __init__(self, parent: Source, indices: Sequence[int]) -> None:
        outside = [i for i in indices if not 0 <= i < len(parent)]
        if outside:
            raise LisaError(f"{parent.name} has {len(parent)} samples, there is no sample {outside[0]}")
        self.parent = parent
        self.indices = [int(i) for i in indices]

    @property
    def name(self) -> str:
        """The parent's name and the number of samples taken."""
        return f"{self.parent.name} ({len(self.indices)} of {len(self.parent)})"

    @property
    def keys(self) -> list[str]:
        """The keys of the samples taken, in the order taken."""
        keys = self.parent.keys
        return [keys[i] for i in self.indices]

    @property
    def captions(self) -> list[str]:
        """The captions of the samples taken."""
        if isinstance(self.parent, HasCaptions):
            captions = self.parent.captions
            return [captions[i] for i in self.indices]
        return [self.parent[i].caption for i in self.indices]

    @property
    def fingerprint(self) -> str:
        """Depends on the parent and on which samples are taken."""
        return content_hash("subset", self.parent.fingerprint, self.indices)

    def part_fingerprint(self, part: Part) -> str:
        """The same for one part of the samples."""
        return content_hash("subset", self.parent.part_fingerprint(part), self.indices)

    def spare(self, index: int) -> int:
        """The parent's; 0 where its samples are all there is (see :class:`HasWindows`)."""
        return self.parent.spare(self.indices[index]) if isinstance(self.parent, HasWindows) else 0

    def window(self, index: int, start: int) -> Sample:
        """The parent's sample from frame ``start`` on."""
        return self.parent.window(self.indices[index], start) if isinstance(self.parent, HasWindows) else self[index]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.parent[self.indices[index]]


def stack_pictures(pictures: Sequence[ByteArray], label: str) -> ByteArray:
    """Pictures (H, W, 3) as one array (H, W, 3 n), or clips (F, H, W, 3) as (F, H, W, 3 n), in their order.

    Args:
        pictures: the pictures or clips.
        label: what to call them in a message.

    Raises:
        LisaError: they are not all of one size.
    """
    if len({picture.shape for picture in pictures}) > 1:
        sizes = ", ".join(describe_size(picture) for picture in pictures)
        raise LisaError(f"the conditions of {label} are {sizes}", "Stacked conditions must have one size")
    return pictures[0] if len(pictures) == 1 else np.concatenate(pictures, axis=-1)


def describe_size(picture: ByteArray) -> str:
    """The size of a picture (H, W, C) or a clip (F, H, W, C) in words."""
    height, width = picture.shape[-3:-1]
    return f"{len(picture)} frames of {width}x{height} pixels" if picture.ndim == 4 else f"{width}x{height} pixels"


def unstack_pictures(stacked: ByteArray) -> list[ByteArray]:
    """The pictures (H, W, 3), or clips (F, H, W, 3), that :func:`stack_pictures` was given."""
    channels = stacked.shape[-1]
    return [np.ascontiguousarray(stacked[..., first : first + 3]) for first in range(0, channels, 3)]


def content_hash(*values: Any, length: int = 20) -> str:
    """A short hexadecimal hash of plain values (numbers, strings, lists, mappings; mappings in any order)."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
