"""Reading clips: a folder of frames, or a video file through PyAV (the extra ``video``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisa.common.errors import LisaError, need
from lisa.data.images import SUFFIXES, image_size, load_rgb, looks_truncated, to_rgb
from lisa.data.samples import ByteArray

#: File name suffixes (lower case) that are taken for videos.
VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv")
_REMEDY = "Replace the clip or take it out of the folder"


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its frames are read.

    Attributes:
        frames: how many there are.
        size: (height, width) in pixels, of the first.
        rate: frames per second; a folder of frames tells none.
        names: the frames' names without suffix; a video has none.
    """

    frames: int
    size: tuple[int, int]
    rate: float | None
    names: tuple[str, ...] | None


def list_clips(folder: Path) -> list[Path]:
    """All clips under ``folder``, sorted by path: videos, and folders that hold pictures. Hidden ones are left out.

    Raises:
        LisaError: pictures lie in ``folder`` itself, so that they belong to no clip.
    """
    if stray := frame_files(folder):
        raise LisaError(
            f"{str(folder)!r} holds pictures beside the clips (such as {stray[0].name!r})",
            "Put the frames of each clip into a folder of its own",
        )
    return sorted(_clips_in(folder))


def any_clip(folder: Path) -> bool:
    """Whether there is a clip under ``folder``, whatever else is in it."""
    return next(_clips_in(folder), None) is not None


def list_videos(folder: Path) -> list[Path]:
    """All videos under ``folder``, sorted by path; hidden files and folders are left out."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file())
    return sorted(folder / f for f in found if not any(part.startswith(".") for part in f.parts))


def _clips_in(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from [path] if frame_files(path) else _clips_in(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder (not below it) in the order in which people count: ``9.png`` before ``10.png``.

    ``a.webp`` beside a folder ``a`` is no frame: it is the animation that ``lisa generate`` makes of the frames in it.
    """
    files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()]
    frames = [f for f in files if f.suffix.lower() != ".webp" or not (folder / f.stem).is_dir()]
    return sorted(frames, key=lambda f: (_counted(f.name), f.name))


def _counted(name: str) -> list[tuple[int, str]]:
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(int(part), "") if "0" <= part[0] <= "9" else (-1, part) for part in parts]


def clip_info(path: Path) -> ClipInfo:
    """Frames, size and rate of a clip. Of mp4 and mov from their tables, of other videos by decoding them once.

    Raises:
        LisaError: it cannot be read, a folder holds a frame twice, or PyAV is not installed.
    """
    if path.is_dir():
        files = frame_files(path)
        names = tuple(f.stem for f in files)
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise LisaError(f"{str(path)!r} holds several frames named {twice!r}", "Keep one picture of each frame")
        return ClipInfo(len(files), image_size(files[0]), None, names)
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if "mp4" in container.format.name:  # frames that an edit list cuts off are in the file, but are not shown
            flags = [(each.is_discard, each.is_corrupt) for each in container.demux(stream) if each.size]
            count = sum(not discarded for discarded, _ in flags)
            if sum(not corrupt for _, corrupt in flags) < stream.frames and _is_truncated(path):
                raise LisaError(f"the video {str(path)!r} is truncated", _REMEDY)
        else:
            count = sum(1 for _ in container.decode(stream))
    first = next(iter_frames(path), None)
    if first is None or not count:
        raise LisaError(f"the video {str(path)!r} holds no frames", _REMEDY)
    return ClipInfo(count, (first.shape[0], first.shape[1]), float(rate) if rate else None, None)


def check_clip(path: Path, info: ClipInfo) -> None:
    """Look at all frames of a clip: a video is decoded once, a picture only where its head or end leaves doubt.

    Raises:
        LisaError: a frame is damaged, not all that were counted can be decoded, or they are not of one size.
    """
    if path.is_dir():
        files = frame_files(path)
        for file in files:
            if looks_truncated(file):
                load_rgb(file)
        if len({image_size(file) for file in files}) > 1:  # heads may be wrong about what lies on its side
            _refuse_sizes(path, {load_rgb(file).shape for file in files})
        return
    with _opened(path) as (container, stream):
        shapes = [(frame.height, frame.width) for frame in container.decode(stream)]
    _refuse_sizes(path, set(shapes))
    if (count := len(shapes)) != info.frames:
        raise LisaError(
            f"the video {str(path)!r} tells of {info.frames} frames, {count} can be decoded",
            "It was cut between key frames, or is damaged: encode it anew, or take it out of the folder",
        )


def _is_truncated(path: Path) -> bool:
    """Whether an mp4 or mov lacks frames that its tables tell of; an edit list may leave out whole ones as well."""
    with _opened(path, ignore_editlist="1") as (container, stream):
        whole = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
        return bool(whole < stream.frames)


def iter_frames(path: Path, backdrop: tuple[int, int, int] = (255, 255, 255)) -> Iterator[ByteArray]:
    """The frames of a clip in order, each uint8 (H, W, 3), upright as the file says.

    Args:
        path: of the video, or the folder of frames.
        backdrop: what shows through transparent pixels.

    Raises:
        LisaError: a frame cannot be read, or PyAV is not installed.
    """
    if path.is_dir():
        yield from (load_rgb(file, backdrop=backdrop) for file in frame_files(path))
        return
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            yield np.ascontiguousarray(np.rot90(_to_rgb(frame, backdrop), round(frame.rotation / 90) % 4))


def _to_rgb(frame: Any, backdrop: tuple[int, int, int]) -> ByteArray:
    if frame.format.has_palette or any(each.is_alpha for each in frame.format.components):
        return to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")), backdrop=backdrop)
    return np.asarray(frame.to_ndarray(format="rgb24"))


def read_frames(path: Path, positions: Sequence[int], backdrop: tuple[int, int, int] = (255, 255, 255)) -> ByteArray:
    """Some frames of a clip, uint8 (F, H, W, 3).

    Args:
        path: of the video, or the folder of frames.
        positions: which, ascending; one may be asked for again. A video is decoded from its beginning to the last.
        backdrop: what shows through transparent pixels.

    Raises:
        LisaError: a frame cannot be read or is not there, frames are not of one size, or PyAV is not installed.
    """
    if path.is_dir():
        files = frame_files(path)
        found = {p: load_rgb(files[p], backdrop=backdrop) for p in set(positions) if p < len(files)}
    else:
        wanted = set(positions)
        found = {
            p: frame
            for p, frame in zip(range(max(positions) + 1), iter_frames(path, backdrop), strict=False)
            if p in wanted
        }
    missing = [p for p in positions if p not in found]
    if missing:
        raise LisaError(f"the clip {str(path)!r} ends before its frame {missing[0]} (of 0, 1, ...)", _REMEDY)
    _refuse_sizes(path, {frame.shape for frame in found.values()})
    return np.stack([found[p] for p in positions])


def _refuse_sizes(path: Path, shapes: set[tuple[int, ...]]) -> None:
    """``shapes``: each begins with the height and the width."""
    if len(shapes) > 1:
        sizes = sorted(f"{shape[1]}x{shape[0]}" for shape in shapes)
        raise LisaError(f"the frames of {str(path)!r} are {' and '.join(sizes)} pixels", "They must have one size")


class _opened:
    """A video file and its first stream of pictures; what PyAV raises inside becomes a LisaError."""

    def __init__(self, path: Path, **options: str) -> None:
        self.path, self.options, self.av = path, options, need("av", "video")
        self.container: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        try:
            self.container = self.av.open(str(self.path), options=self.options)
        except self.av.FFmpegError as error:
            raise self._damaged(error) from None
        if not self.container.streams.video:
            self.container.close()
            raise LisaError(f"{str(self.path)!r} holds no video", _REMEDY)
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        return self.container, stream

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.container.close()
        if isinstance(error, self.av.FFmpegError):
            raise self._damaged(error) from None

    def _damaged(self, error: Any) -> LisaError:
        return LisaError(f"the video {str(self.path)!r} is not readable, or damaged ({error})", _REMEDY)
