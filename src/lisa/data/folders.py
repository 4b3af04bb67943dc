"""Folders of pictures as a source.

The layout::

    data/
      images/       any depth of subfolders; the path without its suffix is the sample's key
      conditions/   the same names (any picture suffix); a condition is as large as its image; several kinds of
                    conditions lie in folders of their own, named after them: conditions/canny/, conditions/depth/
      captions/     the same names with .txt; or the .txt beside the image; or a metadata file instead
      metadata.jsonl (or .csv), here or in images/: file_name, text (or caption), optionally conditioning_image

Where no condition is asked for, a plain folder of pictures will do as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lisa.common.errors import LisaError, nearest
from lisa.data.images import SUFFIXES, image_size, list_images, load_rgb, looks_truncated
from lisa.data.metadata import Row, read_metadata, read_text
from lisa.data.samples import PARTS, Part, Sample, content_hash, stack_pictures


@dataclass(frozen=True)
class _Entry:
    key: str
    image: Path
    conditions: tuple[Path, ...]  # stacked in this order; empty where there is none
    caption: str


class PairedFolder:
    """Images, conditions and captions of a folder; made by :func:`paired_folder`."""

    def __init__(self, path: Path, entries: Sequence[_Entry]) -> None:
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
        images = _hash_files(e.image for e in self._entries)
        conditions = _hash_files(file for e in self._entries for file in (e.conditions or (None,)))
        return {
            "image": content_hash("folder image", self.keys, images),
            "condition": content_hash("folder condition", self.keys, conditions),
            "caption": content_hash("folder caption", self.keys, self.captions),
        }

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
    root = require_folder(path)
    images = root / "images" if (root / "images").is_dir() else root
    if require_condition and images == root:
        raise LisaError(
            f"{str(root)!r} has no folder 'images'",
            "Put the images into 'images/' and their conditions, under the same names, into 'conditions/'; "
            "'lisa prepare' makes both from a folder of photographs",
        )
    files = [f for f in list_images(images) if images != root or f.relative_to(root).parts[0] != "conditions"]
    if not files:
        raise LisaError(f"{str(images)!r} holds no images", f"Supported are {', '.join(SUFFIXES)}")
    keys = [f.relative_to(images).with_suffix("").as_posix() for f in files]
    _refuse_twins(images, keys)
    metadata = read_metadata(root, images)
    folders = _condition_folders(root, images, conditions)
    found = [_by_stem(folder) for folder in folders]
    entries = [_entry(key, file, root, metadata, found, default_caption) for key, file in zip(keys, files, strict=True)]
    _refuse_incomplete(root, folders, entries, require_condition)
    return PairedFolder(root, [_Entry(e.key, e.image, _known(e.conditions), e.caption or "") for e in entries])


def require_folder(path: str | Path) -> Path:
    """The folder at ``path``.

    Raises:
        LisaError: it does not exist (the nearest name beside it is given) or is a file.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise LisaError(f"{str(path)!r} is a file, a folder is needed")
    beside = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
    hint = nearest(root.name, beside)
    raise LisaError(f"there is no folder {str(path)!r}" + (f" ({hint})" if hint else ""), "Check the path")


@dataclass(frozen=True)
class _Draft:
    key: str
    image: Path
    conditions: tuple[Path | None, ...]
    caption: str | None


def _known(conditions: tuple[Path | None, ...]) -> tuple[Path, ...]:
    """All of them, or none where one is missing."""
    known = tuple(file for file in conditions if file is not None)
    return known if len(known) == len(conditions) else ()


def _condition_folders(root: Path, images: Path, names: Sequence[str]) -> list[Path]:
    """Where each kind of condition lies. A single one has the folder to itself, unless there is one of its name (which
    is not just the mirror of a subfolder of the images).
    """
    folder = root / "conditions"
    if len(names) == 1 and (not (folder / names[0]).is_dir() or (images / names[0]).is_dir()):
        return [folder]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        raise LisaError(
            f"{str(root)!r} has no folder 'conditions/{missing[0]}'",
            "Several conditions lie in one folder each, under the names of the images",
            there,
        )
    return [folder / name for name in names] or [folder]


def _entry(
    key: str,
    image: Path,
    root: Path,
    metadata: dict[Path, Row],
    conditions: Sequence[dict[str, Path]],
    default_caption: str | None,
) -> _Draft:
    row = metadata.get(image.resolve(), Row(None, None))
    caption = row.caption
    for text in (root / "captions" / f"{key}.txt", image.with_suffix(".txt")):
        if caption is None and text.is_file():
            caption = read_text(text).strip()
    files = tuple(known.get(key) for known in conditions)
    if row.condition is not None and len(files) == 1:  # what a metadata file names is one picture
        files = (row.condition,)
    return _Draft(key, image, files, default_caption if caption is None else caption)


def _refuse_twins(images: Path, keys: list[str]) -> None:
    twins = [key for key, count in Counter(keys).items() if count > 1]
    if twins:
        raise LisaError(
            f"{str(images)!r} holds several images named {_few(twins)} that differ only in their suffix",
            "Names without suffix must be unique: rename or remove them",
        )


def _refuse_incomplete(root: Path, folders: list[Path], entries: list[_Draft], require_condition: bool) -> None:
    problems, remedies = [], []
    for number, folder in enumerate(folders if require_condition else []):
        bare = [e.key for e in entries if e.conditions[number] is None]
        if bare:
            place = folder.relative_to(root).as_posix()
            which = "a condition" if len(folders) == 1 else f"a condition in {place!r}"
            problems.append(f"{_images(len(bare), len(entries))} without {which} ({_few(bare)})")
            remedies.append(
                f"put a picture of the same name into '{place}/' for each, or make them with 'lisa prepare'"
            )
    mute = [e.key for e in entries if e.caption is None]
    if mute:
        problems.append(f"{_images(len(mute), len(entries))} without a caption ({_few(mute)})")
        remedies.append("write a .txt of the same name beside each image, or set a default caption (it may be empty)")
    if problems:
        remedy = "; ".join(remedies)
        raise LisaError(f"{str(root)!r} has " + " and ".join(problems), remedy[0].upper() + remedy[1:])


def _images(count: int, total: int) -> str:
    return f"{count} image{'s' if count != 1 else ''} of {total}"


def _few(names: Sequence[str], count: int = 3) -> str:
    shown = ", ".join(repr(n) for n in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = list_images(folder)
    stems = [f.relative_to(folder).with_suffix("").as_posix() for f in files]
    _refuse_twins(folder, stems)
    return dict(zip(stems, files, strict=True))


def hash_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _hash_files(paths: Iterable[Path | None]) -> list[str]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda path: "" if path is None else hash_file(path), paths))
