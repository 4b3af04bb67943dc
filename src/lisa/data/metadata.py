"""``metadata.jsonl`` or ``metadata.csv`` of a folder of pictures or clips: captions, conditions, rates, motion."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption")
_CONDITION_COLUMNS = ("conditioning_image", "condition")
_RATE_COLUMNS = ("frame_rate", "fps")
_MOTION_COLUMNS = ("motion_bucket_id", "motion")


@dataclass(frozen=True)
class Row:
    """What a metadata file says about one image or clip; of a clip also frames per second and motion bucket id."""

    caption: str | None = None
    condition: Path | None = None
    rate: float | None = None
    motion: float | None = None


def read_metadata(root: Path, images: Path, *, clips: bool = False) -> dict[Path, Row]:
    """Rows by the resolved path of the image they speak of; of ``clips``, which may be folders of frames.

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
        image = _find(where, str(fields["file_name"]), (found[0].parent, images), clips)
        condition = next((fields[c] for c in _CONDITION_COLUMNS if fields.get(c)), None)
        caption = next((fields[c] for c in _CAPTION_COLUMNS if fields.get(c) is not None), None)
        if image in rows:
            raise LisaError(f"{where}, names {str(fields['file_name'])!r} again", "Keep one entry per image")
        rows[image] = Row(
            None if caption is None else str(caption).strip(),
            None if condition is None else _find(where, str(condition), (found[0].parent, root / "conditions"), clips),
            _number(where, fields, _RATE_COLUMNS, above=0) if clips else None,
            _number(where, fields, _MOTION_COLUMNS) if clips else None,
        )
    return rows


def _number(where: str, fields: Mapping[str, Any], columns: Iterable[str], above: float = -math.inf) -> float | None:
    column = next((c for c in columns if fields.get(c) not in (None, "")), None)
    if column is None:
        return None
    try:
        value = float(fields[column])
    except (TypeError, ValueError):
        value = math.nan
    if not above < value < math.inf:
        raise LisaError(
            f"{where}, has the {column} {fields[column]!r}", "It must be a number" + (" above 0" if above == 0 else "")
        )
    return value


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


def _find(where: str, name: str, folders: Iterable[Path], clips: bool) -> Path:
    for folder in folders:
        if (folder / name).is_file() or (clips and (folder / name).is_dir()):
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
