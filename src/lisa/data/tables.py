"""Tables of pictures as a source: parquet files and data sets of the Hugging Face Hub, read by ``datasets``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, nearest
from lisa.data.images import decode_cell
from lisa.data.samples import PARTS, Part, Sample, content_hash, stack_pictures


class TableSource:
    """Rows of a ``datasets.Dataset`` as samples.

    Args:
        table: a map-style data set.
        name: what to call it in messages.
        identity: a hash of the table's content.
        image_column: pictures (decoded, encoded bytes, or paths).
        condition_column: pictures of the same size; several columns to be stacked in that order; or None for a source
            without conditions.
        caption_column: strings, or None to give every sample ``default_caption``.
        key_column: unique names; None numbers the rows.
        default_caption: the caption where the table has none (a null).

    Raises:
        LisaError: a column is missing, the table is empty, a caption is missing, or keys are not unique.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        identity: str,
        *,
        image_column: str = "image",
        condition_column: str | Sequence[str] | None = "conditioning_image",
        caption_column: str | None = "text",
        key_column: str | None = None,
        default_caption: str | None = None,
    ) -> None:
        self.name = name
        conditions = [condition_column] if isinstance(condition_column, str) else list(condition_column or ())
        self._image, self._conditions = image_column, conditions
        for column in (image_column, *conditions, caption_column, key_column):
            _require_column(name, column, table.column_names)
        if not len(table):
            raise LisaError(f"{name} holds no rows")
        self.keys = _keys(name, table, key_column)
        self.captions = _captions(name, table, caption_column, default_caption)
        self._key_column, self._identity = key_column, identity
        self._table = _undecoded(table, [image_column, *conditions])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row, where = self._table[index], f"of row {index % len(self)} of {self.name}"
        pictures = [decode_cell(row[name], f"{name!r} {where}", (0, 0, 0)) for name in self._conditions]
        return Sample(
            key=self.keys[index],
            image=decode_cell(row[self._image], f"{self._image!r} {where}"),
            condition=stack_pictures(pictures, where.removeprefix("of ")) if pictures else None,
            caption=self.captions[index],
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the table and of the columns taken from it."""
        return content_hash("table", [self.part_fingerprint(part) for part in PARTS])

    def part_fingerprint(self, part: Part) -> str:
        """The same for one part. Captions are hashed themselves, pictures by the table they are in and the column."""
        if part == "caption":
            return content_hash("table caption", self.keys, self.captions)
        several = self._conditions if len(self._conditions) > 1 else next(iter(self._conditions), None)
        column = self._image if part == "image" else several
        return content_hash("table", part, self._identity, column, self._key_column)


def parquet(path: str | Path, *, cache_dir: str | Path | None = None, **columns: Any) -> TableSource:
    """A parquet file, or all parquet files of a folder in the order of their names.

    Args:
        path: the file or folder.
        cache_dir: where ``datasets`` keeps its copy; its own default if None.
        **columns: see :class:`TableSource`.

    Raises:
        LisaError: nothing there, not parquet, or a problem of :class:`TableSource`.
    """
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet")) if root.is_dir() else []
    if not files:
        raise LisaError(f"there is no parquet file at {str(path)!r}", "Check the path")
    table = _load(str(path), "parquet", data_files=[str(f) for f in files], split="train", cache_dir=cache_dir)
    return TableSource(table, str(path), _hash_all(files), **columns)


def hub(
    name: str,
    *,
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
    cache_dir: str | Path | None = None,
    **columns: Any,
) -> TableSource:
    """A data set of the Hugging Face Hub (downloaded once, then read from the cache of ``datasets``).

    Args:
        name: ``owner/name``.
        split: which split to take.
        revision: a commit, tag or branch; pin a commit to make a run repeatable.
        config: the data set's configuration, where it has several.
        cache_dir: where ``datasets`` keeps its copy; its own default if None.
        **columns: see :class:`TableSource`.

    Raises:
        LisaError: it cannot be loaded, or a problem of :class:`TableSource`.
    """
    table = _load(name, name, name=config, split=split, revision=revision, cache_dir=cache_dir)
    return TableSource(table, name, content_hash("hub", table._fingerprint), **columns)


def _load(label: str, kind: str, *, cache_dir: str | Path | None, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(kind, cache_dir=None if cache_dir is None else str(cache_dir), **options)
    except Exception as error:  # datasets raises its own, pyarrow's, the Hub client's and the network's errors
        reason = str(error.__cause__ or error).strip().splitlines()
        raise LisaError(
            f"the data set {label!r} cannot be loaded ({reason[0] if reason else type(error).__name__})",
            "Check the name or path, the split, and the network where it comes from the Hub",
        ) from error


def _require_column(name: str, column: str | None, columns: Sequence[str]) -> None:
    if column is not None and column not in columns:
        hint = nearest(column, columns)
        raise LisaError(f"{name} has no column {column!r}" + (f" ({hint})" if hint else ""), choices=columns)


def _undecoded(table: Any, columns: Sequence[str]) -> Any:
    """The table with pictures left encoded: decoded here, a damaged one is named."""
    import datasets

    for column in columns:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _keys(name: str, table: Any, column: str | None) -> list[str]:
    if column is None:
        return [f"{i:08d}" for i in range(len(table))]
    keys = [str(k) for k in table[column]]
    twice = [k for k, count in Counter(keys).items() if count > 1]
    if twice:
        raise LisaError(f"column {column!r} of {name} holds {twice[0]!r} several times", "Keys must be unique")
    return keys


def _captions(name: str, table: Any, column: str | None, default: str | None) -> list[str]:
    given: list[Any] = [None] * len(table) if column is None else list(table[column])
    captions = [default if c is None else str(c).strip() for c in given]
    missing = [i for i, c in enumerate(captions) if c is None]
    if missing:
        raise LisaError(
            f"{name} has {len(missing)} rows of {len(captions)} without a caption (first: row {missing[0]})",
            "Set a default caption (it may be empty)",
        )
    return [c or "" for c in captions]


def _hash_all(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
