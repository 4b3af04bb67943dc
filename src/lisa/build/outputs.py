"""Where generated pictures and clips lie, each with a stamp of all that decides what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, read_json
from lisa.data.images import read_note, save_png
from lisa.data.video import frame_files
from lisa.sample.clips import save_animation
from lisa.sample.pictures import Request

_STAMP = "lisa-generate"  # in the PNGs' text chunks


class Outputs(Protocol):
    """A folder of what was generated."""

    def place(self, request: Request) -> Path:
        """Where what was asked for lies, or will."""

    def stamp(self, request: Request) -> str | None:
        """What :meth:`write` was told for it; None where it is not there, or not whole."""

    def write(self, request: Request, made: np.ndarray, stamp: str) -> None:
        """Write it, whole or not at all."""


class PictureFiles:
    """``<key>.png`` each; see :class:`Outputs`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def place(self, request: Request) -> Path:
        """A file."""
        return self.out / f"{request.key}.png"

    def stamp(self, request: Request) -> str | None:
        """Of the file's text chunk."""
        return read_note(self.place(request), _STAMP)

    def write(self, request: Request, made: np.ndarray, stamp: str) -> None:
        """``made``: uint8 (H, W, 3)."""
        save_png(made, self.place(request), {_STAMP: stamp})


class ClipFiles:
    """A folder of frames ``<key>/`` each, and ``<key>.webp`` to look at; see :class:`Outputs`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def place(self, request: Request) -> Path:
        """A folder."""
        return self.out / request.key

    def stamp(self, request: Request) -> str | None:
        """Of the frames, all of which must be there and be made alike."""
        folder = self.place(request)
        stamps = [read_note(file, _STAMP) for file in frame_files(folder)] if folder.is_dir() else []
        return stamps[0] if len(stamps) == len(request.condition) and len(set(stamps)) == 1 else None

    def write(self, request: Request, made: np.ndarray, stamp: str) -> None:
        """``made``: uint8 (F, H, W, 3)."""
        place = self.place(request)
        save_animation([Image.fromarray(frame) for frame in made], place.with_name(f"{place.name}.webp"), request.rate)
        with atomic_dir(place) as folder:  # last: it says that the clip is done
            for number, frame in enumerate(made):
                save_png(frame, folder / f"{number:04d}.png", {_STAMP: stamp})


def how_made(folders: Sequence[Path]) -> dict[str, Any] | None:
    """How the pictures were made, as ``lisa generate`` wrote it; None where that is not told.

    Raises:
        LisaError: figures of several folders are to be averaged, and these were not made alike.
    """
    files = [folder / "settings.json" for folder in folders]
    first, *others = [read_json(file) if file.is_file() else None for file in files]
    for folder, other in zip(folders[1:], others, strict=True):
        if (first is None) != (other is None):
            there, lacking = (folders[0], folder) if other is None else (folder, folders[0])
            raise LisaError(
                f"{str(there)!r} tells in settings.json how its pictures were made, {str(lacking)!r} does not",
                "Judge pictures together that were made alike",
            )
        mine, theirs = first or {}, other or {}
        told_otherwise = {"solver"}  # by "scheduler", and the side network by its weights where they are known
        if mine.get("weights") == theirs.get("weights") and None not in _listed(mine.get("weights")):
            told_otherwise.add("side")
        for name in sorted({**mine, **theirs}.keys() - told_otherwise):
            if mine.get(name) != theirs.get(name):
                raise LisaError(
                    f"{name} is {mine.get(name)} for {str(folders[0])!r} and {theirs.get(name)} for {str(folder)!r}",
                    "Judge pictures together that were made alike, or each folder by itself",
                )
    return first


def _listed(weights: Any) -> list[Any]:
    """A hash, or one for each of several side networks."""
    return weights if isinstance(weights, list) else [weights]
