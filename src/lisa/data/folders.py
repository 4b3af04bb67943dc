"""Folders of pictures as a source.

The layout::

    data/
      images/       any depth of subfolders; the path without its suffix is the sample's key
      conditions/   the same names (any picture suffix); a condition is as large as its image
      captions/     the same names with .txt; or the .txt beside the image; or a metadata file instead
      metadata.jsonl (or .csv), here or in images/: file_name, text (or caption), optionally conditioning_image

Where no condition is asked for, a plain folder of pictures will do as well.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, nearest
from lisa.data.images import SUFFIXES, image_size, list_images, load_rgb, looks_truncated
from lisa.data.samples import PARTS, Part, Sample, content_hash

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption")
_CONDITION_COLUMNS = ("conditioning_image", "condition")


@dataclass(frozen=True)
class _Entry:
    key: str
    image: Path
    condition: Path | None
    caption: str


@dataclass(frozen=True)
class _Row:
    """What a metadata file says about one image."""

    caption: str | None
    condition: Path | None


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
        condition = None if entry.condition is None else load_rgb(entry.condition, backdrop=(0, 0, 0))
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
        conditions = _hash_files(e.condition for e in self._entries)
        return {
            "image": content_hash("folder image", self.keys, images),
            "condition": content_hash("folder condition", self.keys, conditions),
            "caption": content_hash("folder caption", self.keys, self.captions),
        }

    def paths(self, index: int) -> tuple[Path, Path | None]:
        """The files of the image and of the condition of a sample."""
        entry = self._entries[index]
        return entry.image, entry.condition

    def suspects(self) -> list[int]:
        """Samples with a file that may be truncated, by a cheap look at the files' ends."""
        return [
            i
            for i, e in enumerate(self._entries)
            if looks_truncated(e.image) or (e.condition is not None and looks_truncated(e.condition))
        ]

    def sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """(height, width) of the image and of the condition of a sample, from the files' headers."""
        entry = self._entries[index]
        return image_size(entry.image), None if entry.condition is None else image_size(entry.condition)


def paired_folder(
    path: str | Path, *, require_condition: bool = True, default_caption: str | None = None
) -> PairedFolder:
    """Open a folder of images, conditions and captions (the layout is in the module's documentation).

    Args:
        path: the folder.
        require_condition: False takes images without conditions (pretraining, ``lisa prepare``); conditions that are
            there are then still read.
        default_caption: the caption of images that have none; without it they are an error.

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
    metadata = _read_metadata(root, images)
    conditions = _by_stem(root / "conditions")
    entries = [
        _entry(key, file, root, metadata, conditions, default_caption) for key, file in zip(keys, files, strict=True)
    ]
    _refuse_incomplete(root, entries, require_condition)
    return PairedFolder(root, [_Entry(e.key, e.image, e.condition, e.caption or "") for e in entries])


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
    condition: Path | None
    caption: str | None


def _entry(
    key: str,
    image: Path,
    root: Path,
    metadata: dict[Path, _Row],
    conditions: dict[str, Path],
    default_caption: str | None,
) -> _Draft:
    row = metadata.get(image.resolve(), _Row(None, None))
    caption = row.caption
    for text in (root / "captions" / f"{key}.txt", image.with_suffix(".txt")):
        if caption is None and text.is_file():
            caption = _read_text(text).strip()
    return _Draft(key, image, row.condition or conditions.get(key), default_caption if caption is None else caption)


def _refuse_twins(images: Path, keys: list[str]) -> None:
    twins = [key for key, count in Counter(keys).items() if count > 1]
    if twins:
        raise LisaError(
            f"{str(images)!r} holds several images named {_few(twins)} that differ only in their suffix",
            "Names without suffix must be unique: rename or remove them",
        )


def _refuse_incomplete(root: Path, entries: list[_Draft], require_condition: bool) -> None:
    problems, remedies = [], []
    bare = [e.key for e in entries if e.condition is None]
    if bare and require_condition:
        problems.append(f"{_images(len(bare), len(entries))} without a condition ({_few(bare)})")
        remedies.append("put a picture of the same name into 'conditions/' for each, or make them with 'lisa prepare'")
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


def _read_metadata(root: Path, images: Path) -> dict[Path, _Row]:
    """Rows by the resolved path of the image they speak of."""
    found = [folder / name for folder in dict.fromkeys((root, images)) for name in _METADATA]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise LisaError(f"several metadata files: {', '.join(repr(str(p)) for p in found)}", "Keep one of them")
    rows: dict[Path, _Row] = {}
    for number, fields in enumerate(_rows(found[0]) if found else [], start=1):
        where = f"{str(found[0])!r}, entry {number}"
        if not isinstance(fields, dict) or not fields.get("file_name"):
            raise LisaError(f"{where}, has no 'file_name'", "Each entry needs file_name and text")
        image = _find(where, str(fields["file_name"]), (found[0].parent, images))
        condition = next((fields[c] for c in _CONDITION_COLUMNS if fields.get(c)), None)
        caption = next((fields[c] for c in _CAPTION_COLUMNS if fields.get(c) is not None), None)
        if image in rows:
            raise LisaError(f"{where}, names {str(fields['file_name'])!r} again", "Keep one entry per image")
        rows[image] = _Row(
            None if caption is None else str(caption).strip(),
            None if condition is None else _find(where, str(condition), (found[0].parent, root / "conditions")),
        )
    return rows


def _rows(path: Path) -> Iterable[Any]:
    lines = _read_text(path).splitlines()
    if path.suffix == ".csv":
        yield from csv.DictReader(_read_text(path).splitlines(keepends=True))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise LisaError(f"line {number} of {str(path)!r} is not valid JSON ({error.msg})") from None


def _find(where: str, name: str, folders: Iterable[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise LisaError(f"{where}, names {name!r}, which does not exist", "Paths are relative to the metadata file")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LisaError(f"{str(path)!r} is not UTF-8 text", "Save it as UTF-8") from None


def hash_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _hash_files(paths: Iterable[Path | None]) -> list[str]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda path: "" if path is None else hash_file(path), paths))
