"""Folders of pictures as a source.

The layout::

    data/
      images/       any depth of subfolders; the path without its suffix is the sample's key
      conditions/   the same names (any picture suffix); a condition is as large as its image; several kinds of
                    conditions lie in folders of their own, named after them: conditions/canny/, conditions/depth/
      captions/     the same names with .txt; or the .txt beside the image; or a metadata file instead
      metadata.jsonl (or .csv), here or in images/: file_name, text (or caption), optionally conditioning_image

Where no condition is asked for, a plain folder of pictures will do as well. Clips lie in ``clips/`` in the same layout:
see :mod:`lisa.data.clips`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from lisa.data.images import image_size, load_rgb, looks_truncated
from lisa.data.layout import PICTURES, Entry, read_layout, require_folder
from lisa.data.samples import PARTS, ByteArray, Part, Sample, content_hash, stack_pictures

__all__ = ["PairedFolder", "hash_file", "hash_files", "paired_folder", "require_folder"]


class PairedFolder:
    """Images, conditions and captions of a folder; made by :func:`paired_folder`."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.path = path
        self._entries = list(entries)
        self.name = str(path)
        self.keys = [entry.key for entry in self._entries]
        self.captions = [entry.caption for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        image = load_rgb(entry.image)
        pictures = [load_rgb(file, backdrop=(0, 0, 0)) for file in entry.conditions]
        condition = stack_pictures(pictures, repr(entry.key)) if pictures else None
        return Sample(entry.key, image, condition, entry.caption)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything in the folder that affects the samples: the files' bytes, not their dates."""
        return content_hash("folder", [self.part_fingerprint(part) for part in PARTS])

    def part_fingerprint(self, part: Part) -> str:
        """The same for the images, the conditions or the captions alone."""
        return self._part_fingerprints[part]

    @cached_property
    def _part_fingerprints(self) -> dict[Part, str]:
        images = hash_files(e.image for e in self._entries)
        conditions = hash_files(file for e in self._entries for file in (e.conditions or (None,)))
        return {
            "image": content_hash("folder image", self.keys, images),
            "condition": content_hash("folder condition", self.keys, conditions),
            "caption": content_hash("folder caption", self.keys, self.captions),
        }

    def hash(self, index: int) -> str:
        """Hash of the bytes of the image of a sample."""
        return hash_file(self._entries[index].image)

    def frames(self, index: int) -> Iterator[ByteArray]:
        """The image of a sample, alone."""
        yield load_rgb(self._entries[index].image)

    def paths(self, index: int) -> tuple[Path, ...]:
        """The files of the image and of the conditions of a sample."""
        entry = self._entries[index]
        return entry.image, *entry.conditions

    def suspects(self) -> list[int]:
        """Samples with a file that may be truncated, by a cheap look at the files' ends."""
        return [i for i in range(len(self)) if any(looks_truncated(file) for file in self.paths(i))]

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of the image and of the conditions of a sample, from the files' headers."""
        return tuple(image_size(file) for file in self.paths(index))


def paired_folder(
    path: str | Path,
    *,
    require_condition: bool = True,
    default_caption: str | None = None,
    conditions: Sequence[str] = (),
) -> PairedFolder:
    """Open a folder of images, conditions and captions (the layout is in the module's documentation).

    Args:
        path: the folder.
        require_condition: False takes images without conditions (pretraining, ``lisa prepare``); conditions that are
            there are then still read.
        default_caption: the caption of images that have none; without it they are an error.
        conditions: names of the kinds of conditions. Several are read from ``conditions/<name>/`` each and stacked in
            this order; so is a single one where that folder exists.

    Raises:
        LisaError: no such folder, no images in it, images without condition or caption (named), two images with one
            name, or a metadata file that cannot be read or names missing files.
    """
    root, entries = read_layout(
        path,
        PICTURES,
        require_condition=require_condition,
        default_caption=default_caption,
        conditions=conditions,
    )
    return PairedFolder(root, entries)


def hash_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def hash_files(paths: Iterable[Path | None]) -> list[str]:
    """Hashes of files' bytes, in order; empty where there is none."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda path: "" if path is None else hash_file(path), paths))
