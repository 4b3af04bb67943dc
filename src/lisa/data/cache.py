"""Arrays computed once and kept on disk: latents, text embeddings.

One folder per key, one ``.npy`` per array. An array grows row by row in a ``.partial`` file, which is renamed when it
is complete: a killed run goes on where it stopped, and a reader never sees half an array. Who comes while another
process writes waits for it, and uses what it wrote. Rows are written, not mapped, because a full disk under a writable
memory map kills the process instead of raising an error.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lisa.common.errors import LisaError
from lisa.common.files import explain_disk_errors, read_json, write_json
from lisa.data.samples import content_hash

#: Computes rows ``rows.start`` to ``rows.stop`` of an array; called in order, without gaps.
Build = Callable[[slice], ArrayLike]
#: The same for several arrays at once, by name.
BuildAll = Callable[[slice], Mapping[str, ArrayLike]]
#: Of several arrays, by name: the shape of the whole array, and its type.
Shapes = Mapping[str, tuple[tuple[int, ...], DTypeLike]]


def cache_key(**parts: Any) -> str:
    """The key of a cache from everything that affects its content, and nothing else.

    Example:
        ``cache_key(vae=vae_hash, images=source.part_fingerprint("image"), transform=transform.fingerprint)``
    """
    return content_hash("cache", parts)


class ArrayCache:
    """Memory-mapped arrays in ``root/key``.

    Args:
        root: the folder of all caches.
        key: from :func:`cache_key`; two caches with the same key hold the same content.
        about: what the key was made from, written to ``about.json`` for people who look into the folder.
    """

    def __init__(self, root: str | Path, key: str, about: Mapping[str, Any] | None = None) -> None:
        _check_name("cache key", key)
        self.folder = Path(root) / key
        self.key = key
        self._about = dict(about or {})

    def is_complete(self, name: str) -> bool:
        """Has the array ``name`` been built to its end?"""
        return self._path(name).is_file()

    def done(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> int:
        """How many rows of the array are there, complete or not."""
        if self.is_complete(name):
            return shape[0]
        return _whole_rows(self._partial(name), shape, np.dtype(dtype))

    def get_or_build(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, build: Build, *, chunk: int = 64
    ) -> NDArray[Any]:
        """The array, read-only and memory-mapped; what is missing of it is built first.

        Under several processes let one of them build while the others wait, then call it in all of them.

        Args:
            name: the array's name, also its file's.
            shape: of the whole array; the first axis counts samples.
            dtype: any fixed-size numpy type.
            build: gives the rows of a slice, shaped ``(stop - start, *shape[1:])``.
            chunk: rows per call of ``build``. A killed run loses at most one chunk.

        Raises:
            LisaError: ``build`` gave another shape, the stored array has another one, or the disk is full.
        """
        return self.get_or_build_all({name: (shape, dtype)}, lambda rows: {name: build(rows)}, chunk=chunk)[name]

    def get_or_build_all(self, arrays: Shapes, build: BuildAll, *, chunk: int = 64) -> dict[str, NDArray[Any]]:
        """The same for arrays of as many rows each that are computed together, in one go over the rows.

        Raises:
            LisaError: see :meth:`get_or_build`.
        """
        for _ in self.steps(arrays, build, chunk=chunk):
            pass
        return {name: self.load(name, shape, kind) for name, (shape, kind) in arrays.items()}

    def steps(self, arrays: Shapes, build: BuildAll, *, chunk: int = 64) -> Generator[int, None, None]:
        """The building of :meth:`get_or_build_all`, a chunk at a time: yields how many rows are done, before each.

        Several caches over the same samples can so be built in step. Whoever does that with several at once takes them
        in one order, as other processes do: each holds its lock until it is at its end or closed.
        """
        if chunk < 1:
            raise LisaError(f"chunk is {chunk}, it must be at least 1")
        if self._missing(arrays):
            with explain_disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "building.lock"):
                    if missing := self._missing(arrays):  # still, if another process was waited for
                        yield from self._grow(missing, build, chunk)

    def _missing(self, arrays: Shapes) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {name: (shape, np.dtype(kind)) for name, (shape, kind) in arrays.items() if not self.is_complete(name)}

    def missing_bytes(self, arrays: Shapes) -> int:
        """What has still to be written of them."""
        rows = {name: shape[0] - self.done(name, shape, kind) for name, (shape, kind) in arrays.items()}
        return sum(rows[name] * _row_bytes(shape, np.dtype(kind)) for name, (shape, kind) in arrays.items())

    def load(self, name: str, shape: tuple[int, ...] | None = None, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """A complete array, read-only and memory-mapped.

        Raises:
            LisaError: it is not there, is damaged, or is not of the shape and type expected.
        """
        path = self._path(name)
        if not path.is_file():
            raise LisaError(f"the cache {str(self.folder)!r} holds no complete array {name!r}", "Build it first")
        again = f"Delete {str(self.folder)!r} to have it built again"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r" if _has_bytes(shape) else None, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise LisaError(f"the cached array {str(path)!r} cannot be read ({error})", again) from None
        wrong_shape = shape is not None and array.shape != tuple(shape)
        if wrong_shape or (dtype is not None and array.dtype != np.dtype(dtype)):
            expected = f"{tuple(shape) if shape is not None else ''} {np.dtype(dtype) if dtype is not None else ''}"
            raise LisaError(
                f"the cached array {str(path)!r} is {array.shape} {array.dtype}, expected {expected.strip()}", again
            )
        return array

    def _grow(
        self, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], build: BuildAll, chunk: int
    ) -> Iterator[int]:
        """Write what is missing, all arrays in step: from where the one that was left furthest behind goes on."""
        self._write_about()
        start = min(_whole_rows(self._partial(name), shape, kind) for name, (shape, kind) in arrays.items())
        count = next(iter(arrays.values()))[0][0]
        with ExitStack() as stack:
            files = {name: stack.enter_context(self._open(name, *kind, start)) for name, kind in arrays.items()}
            for first in range(start, count, chunk):
                yield first
                rows = slice(first, min(first + chunk, count))
                values = build(rows)
                for name, (shape, kind) in arrays.items():
                    files[name].write(_checked(name, values[name], rows, shape, kind).tobytes())
                    files[name].flush()
                    os.fsync(files[name].fileno())
        for name in arrays:
            os.replace(self._partial(name), self._path(name))

    def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int) -> BinaryIO:
        """The partial file, positioned after its first ``rows`` rows; what comes after them is dropped."""
        header = _header(shape, dtype)
        file = self._partial(name).open("r+b" if rows else "wb")
        if rows:
            file.truncate(len(header) + rows * _row_bytes(shape, dtype))
            file.seek(0, os.SEEK_END)
        else:
            file.write(header)
        return file

    def _write_about(self) -> None:
        about = self.folder / "about.json"
        if self._about and not about.exists():
            write_json(about, self._about)

    def about(self) -> dict[str, Any]:
        """What the key was made from, if it was written down."""
        path = self.folder / "about.json"
        return dict(read_json(path)) if path.is_file() else {}

    def _path(self, name: str) -> Path:
        _check_name("array name", name)
        return self.folder / f"{name}.npy"

    def _partial(self, name: str) -> Path:
        return self._path(name).with_suffix(".npy.partial")


def _checked(name: str, values: ArrayLike, rows: slice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(values, dtype=dtype)
    expected = (rows.stop - rows.start, *shape[1:])
    if array.shape != expected:
        raise LisaError(
            f"rows {rows.start} to {rows.stop} of the cached array {name!r} came as {array.shape}, expected {expected}"
        )
    return array


def _check_name(what: str, name: str) -> None:
    if not name or any(c in name for c in "/\\") or name.startswith("."):
        raise LisaError(f"{name!r} cannot be a {what}", "Use letters, digits, '-', '_' and '.'")


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The head of an ``.npy`` file of this shape: its length also tells how many rows follow it."""
    head = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_2_0(head, fields)
    return head.getvalue()


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def _whole_rows(partial: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Complete rows in a partial file; none if it was started for another shape or type."""
    header, row_bytes = _header(shape, dtype), _row_bytes(shape, dtype)
    if not partial.is_file() or not row_bytes:
        return 0
    with partial.open("rb") as file:
        if file.read(len(header)) != header:
            return 0
    return min((partial.stat().st_size - len(header)) // row_bytes, shape[0])


def _has_bytes(shape: tuple[int, ...] | None) -> bool:
    """An empty file cannot be memory-mapped."""
    return shape is None or 0 not in shape
