"""``metadata.jsonl`` or ``metadata.csv`` of a folder of pictures: captions, and the condition of each image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption")
_CONDITION_COLUMNS = ("conditioning_image", "condition")


@dataclass(frozen=True)
class Row:
    """What a metadata file says about one image."""

    caption: str | None
    condition: Path | None


def read_metadata(root: Path, images: Path) -> dict[Path, Row]:
    """Rows by the resolved path of the image they speak of.

    Raises:
        LisaError: several metadata files, one that cannot be read, or one that names missing files.
    """
    found = [folder / name for folder in dict.fromkeys((root, images)) for name in _METADATA]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise LisaError(f"several metadata files: {', '.join(repr(str(p)) for p in found)}", "Keep one of them")
    rows: dict[Path, Row] = {}
    for number, fields in enumerate(_rows(found[0]) if found else [], start=1):
        where = f"{str(found[0])!r}, entry {number}"
        if not isinstance(fields, dict) or not fields.get("file_name"):
            raise LisaError(f"{where}, has no 'file_name'", "Each entry needs file_name and text")
        image = _find(where, str(fields["file_name"]), (found[0].parent, images))
        condition = next((fields[c] for c in _CONDITION_COLUMNS if fields.get(c)), None)
        caption = next((fields[c] for c in _CAPTION_COLUMNS if fields.get(c) is not None), None)
        if image in rows:
            raise LisaError(f"{where}, names {str(fields['file_name'])!r} again", "Keep one entry per image")
        rows[image] = Row(
            None if caption is None else str(caption).strip(),
            None if condition is None else _find(where, str(condition), (found[0].parent, root / "conditions")),
        )
    return rows


def _rows(path: Path) -> Iterable[Any]:
    lines = read_text(path).splitlines()
    if path.suffix == ".csv":
        yield from csv.DictReader(read_text(path).splitlines(keepends=True))
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


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        LisaError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LisaError(f"{str(path)!r} is not UTF-8 text", "Save it as UTF-8") from None
