"""Files that are either whole or absent: write beside the target, then rename.

A reader never sees half a file, and a failure (a full disk, a killed process) leaves the previous good one untouched.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# Writers in other languages hide the error number: safetensors prints it, torch's zip writer only says it failed.
_FULL_WORDS = ("no space left", "os error 28", "disk quota exceeded", "pytorchstreamwriter failed", "unexpected pos")


@contextlib.contextmanager
def atomic_write(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path (same folder, same suffix) to write to; it replaces ``path`` when the block ends well.

    Args:
        path: the file to write; missing parent folders are made.
        durable: flush to the disk before the rename, so that a power cut cannot leave an empty file. Set to False for
            many small files that can be made again.

    Raises:
        LisaError: no space, no permission, or the parent is not a folder. What was at ``path`` is still there.
    """
    target = Path(path)
    with explain_disk_errors(target):
        temporary = _temporary(target)
        try:
            yield temporary
            if durable:
                _flush(temporary)
            os.replace(temporary, target)
            if durable:
                _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Give a new empty temporary folder; it becomes ``path`` (replacing a folder there) when the block ends well.

    A folder cannot be replaced in one step: the old one is set aside, the new one takes its name, then the old one is
    deleted. If the process dies in between, :func:`restore_dir` (called here, and by readers) puts the old one back.

    Raises:
        LisaError: no space, no permission, or ``path`` is a file. A previous folder at ``path`` is whole.
    """
    target = Path(path)
    with explain_disk_errors(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        restore_dir(target)
        _remove_abandoned(target)
        temporary = _temporary(target)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(Path(folder) / name)
                _flush(Path(folder))
            _swap(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def restore_dir(path: str | Path) -> bool:
    """Undo a replacement of the folder ``path`` that was cut short; True if something was put back."""
    target = Path(path)
    aside = _aside(target)
    if not aside.is_dir():
        return False
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        return False
    aside.rename(target)
    return True


def copy_linked(source: str | Path, target: str | Path) -> None:
    """Copy a folder, as further names of the same files where the disk can: for files that are only ever replaced."""

    def link(there: str, here: str) -> None:
        try:
            os.link(there, here)
        except OSError:  # another disk, or a system that cannot
            shutil.copy2(there, here)

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def write_text(path: str | Path, text: str, *, durable: bool = True) -> Path:
    """Write UTF-8 text atomically; returns the path."""
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> Path:
    """Write JSON atomically (indented, keys in the order given); returns the path.

    NaN and infinities become ``null``: they are not JSON, and other languages' readers stop at them.
    """
    return write_text(
        path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable
    )


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        LisaError: there is no such file, or it is not JSON.
    """
    source = Path(path)
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LisaError(f"there is no file {str(source)!r}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LisaError(f"{str(source)!r} is not valid JSON ({error})") from None
    except OSError as error:
        raise LisaError(f"cannot read {str(source)!r} ({error.strerror})") from None


@contextlib.contextmanager
def explain_disk_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of the disk while writing ``path`` into one clear message; every other error passes unchanged."""
    try:
        yield
    except LisaError:
        raise
    except Exception as error:
        explained = _explain(error, Path(path))
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, path: Path) -> LisaError | None:
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or (number is None and any(words in str(error).lower() for words in _FULL_WORDS)):
        return LisaError(
            f"no space left on the disk while writing {str(path)!r} ({_free_space(path)} free)",
            "What was there before is still whole. Free some space, or write elsewhere, and start again",
        )
    if isinstance(error, OSError) and error.filename and not _near(Path(str(error.filename)), path):
        return None  # the block stumbled over some other file: not ours to explain
    if number in _FORBIDDEN:
        return LisaError(
            f"not allowed to write {str(path)!r} ({os.strerror(number)})", "Choose a folder that you may write to"
        )
    if number in (errno.ENOTDIR, errno.EEXIST):
        return LisaError(
            f"cannot write {str(path)!r}: a file stands where a folder is needed", "Move it away, or write elsewhere"
        )
    if number == errno.EISDIR:
        return LisaError(
            f"cannot write {str(path)!r}: a folder stands where a file is needed", "Move it away, or write elsewhere"
        )
    return None


def _near(name: Path, target: Path) -> bool:
    """Is ``name`` the target, its temporary stand-in (or inside it), or one of the folders above?"""
    name, target = name.absolute(), target.absolute()
    return name in target.parents or name == target or target.parent in name.parents


def _free_space(path: Path) -> str:
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
    return "an unknown amount"


def _swap(new: Path, target: Path) -> None:
    aside = _aside(target)
    replaced = target.exists()
    if replaced:
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if replaced:
            aside.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".old-{target.name}")


def _temporary(target: Path) -> Path:
    """A new hidden name beside ``target`` that keeps its suffix (writers choose formats by it) and says whose it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f"{_owner()}{os.getpid()}-{secrets.token_hex(4)}-{target.name}")


def _owner() -> str:
    return f".tmp-{socket.gethostname().replace('-', '_')}-"


def _remove_abandoned(target: Path) -> None:
    """Delete what killed processes of this machine left of earlier attempts at ``target``: checkpoints are large."""
    for leftover in target.parent.glob(f"{_owner()}*-{glob.escape(target.name)}"):
        pid = leftover.name.removeprefix(_owner()).split("-", 1)[0]
        if leftover.is_dir() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _flush(path: Path) -> None:
    """Push a file, or the names in a folder, to the disk. Not every system can open a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch, paths and objects with ``to_json`` as plain JSON values."""
    if hasattr(value, "to_json"):
        return _plain(value.to_json())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
