"""Folders of clips as a source, in the layout that folders of pictures have (:mod:`lisa.data.folders`)::

data/
  clips/        one folder of frames per clip, or one .mp4, .webm, .gif, .mov or .mkv; the path without its suffix is
                the sample's key; frames are ordered by their names, in which numbers count as numbers
  conditions/   the same names, each a folder of frames or a video; as many frames as the clip has, of the same size,
                and where both are folders under the same names; several kinds: conditions/canny/, conditions/depth/
  captions/     the same names with .txt; or the .txt beside the clip; or a metadata file instead
  metadata.jsonl (or .csv), here or in clips/: file_name, text (or caption), optionally condition, frame_rate (or
                fps; of a video its own is taken unless this tells another), motion_bucket_id (or motion)
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lisa.common.errors import LisaError, choose
from lisa.data.folders import hash_files
from lisa.data.images import list_images
from lisa.data.layout import CLIPS, Entry, few, read_layout
from lisa.data.samples import PARTS, ByteArray, Part, Sample, content_hash, stack_pictures
from lisa.data.video import (
    ClipInfo,
    any_clip,
    check_clip,
    clip_info,
    frame_files,
    iter_frames,
    list_videos,
    read_frames,
)

SHORT = ("error", "repeat")
_BLACK = (0, 0, 0)
_NEARLY = 0.99  # 29.97 frames per second will do for 30


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip make a sample.

    Attributes:
        frames: how many.
        rate: how many of them per second: the nearest frames are taken. None: every frame, at the clip's own rate.
        short: of a clip that has too few, repeat the last (``repeat``), or refuse it (``error``).

    Raises:
        LisaError: an impossible number or an unknown choice.
    """

    frames: int
    rate: float | None = None
    short: str = "error"

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise LisaError(f"frames is {self.frames}, a clip has at least 2")
        if self.rate is not None and not self.rate > 0:
            raise LisaError(f"the frame rate is {self.rate}, it must be above 0")
        choose("way with short clips", self.short, SHORT)

    def offsets(self, own: float | None) -> list[int]:
        """The frames of a sample, counted from its first, in a clip of ``own`` frames per second."""
        step = 1.0 if self.rate is None or own is None else max(1.0, own / self.rate)
        return [int(number * step + 0.5) for number in range(self.frames)]


@dataclass(frozen=True)
class _Clip:
    """An entry whose clip has been looked at."""

    entry: Entry
    info: ClipInfo
    rate: float | None
    offsets: list[int]

    @property
    def spare(self) -> int:
        return max(0, self.info.frames - 1 - self.offsets[-1])


class ClipFolder:
    """Clips, conditions and captions of a folder; made by :func:`clip_folder`. Each item is the middle of its clip."""

    def __init__(self, path: Path, entries: Sequence[Entry], sampling: Sampling | None) -> None:
        self.path, self.sampling, self.name = path, sampling, str(path)
        self._clips = [self._look(entry) for entry in entries]
        self._belong: set[Path] = set()  # conditions that have been found to fit their clips
        self.keys = [entry.key for entry in entries]
        self.captions = [entry.caption for entry in entries]
        self.rates = [clip.rate for clip in self._clips]
        self.motions = [entry.motion for entry in entries]
        self._refuse_rates()
        self._refuse_short()

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Sample:
        return self.window(index, self.spare(index) // 2)

    def spare(self, index: int) -> int:
        """How many frames later a sample of this clip could begin, at most."""
        return self._clips[index].spare

    def window(self, index: int, start: int) -> Sample:
        """The sample that begins at frame ``start`` of a clip.

        Raises:
            LisaError: a file cannot be read, or the condition does not belong to the clip frame by frame.
        """
        clip = self._clips[index]
        entry, last = clip.entry, clip.info.frames - 1
        positions = [min(start + offset, last) for offset in clip.offsets]
        for file in entry.conditions:
            self._refuse_other(clip, file)
        image = read_frames(entry.image, positions)
        drawn = [read_frames(file, positions, _BLACK) for file in entry.conditions]
        condition = stack_pictures(drawn, repr(entry.key)) if drawn else None
        rate = clip.rate if self.sampling is None or self.sampling.rate is None else self.sampling.rate
        return Sample(entry.key, image, condition, entry.caption, rate=rate, motion=entry.motion)

    def frames(self, index: int) -> Iterator[ByteArray]:
        """All frames of a clip in order, without its conditions."""
        return iter_frames(self._clips[index].entry.image)

    def count(self, index: int) -> int:
        """How many frames a clip has."""
        return self._clips[index].info.frames

    def in_the_middle(self) -> tuple[int, float]:
        """How many clips are longer than a sample, and the share of all frames that lies in the middles."""
        spare = [clip.spare for clip in self._clips]
        return sum(map(bool, spare)), 1 - sum(spare) / sum(clip.info.frames for clip in self._clips)

    def hash(self, index: int) -> str:
        """Hash of the bytes of a clip."""
        return content_hash(hash_files(_files(self._clips[index].entry.image)))

    def check(self, decoded: Container[int] | None = None, *, conditions: bool = True) -> None:
        """Look at all clips (and conditions): pictures are read only if they look damaged, videos only if told so.

        Args:
            decoded: clips of which every frame is decoded, where they are videos; None: all.
            conditions: look at those, too.

        Raises:
            LisaError: a condition does not belong to its clip frame by frame, or a file is damaged.
        """
        for index, clip in enumerate(self._clips):
            others = clip.entry.conditions if conditions else ()
            for file in others:
                self._refuse_other(clip, file)
            for file in (clip.entry.image, *others):  # a condition has as many frames, by now
                if file.is_dir() or decoded is None or index in decoded:
                    check_clip(file, clip.info)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything in the folder that affects the samples: the files' bytes, not their dates."""
        return content_hash("clips", [self.part_fingerprint(part) for part in PARTS])

    def part_fingerprint(self, part: Part) -> str:
        """The same for the clips (with rates and motions), the conditions or the captions alone."""
        return self._part_fingerprints[part]

    @cached_property
    def _part_fingerprints(self) -> dict[Part, str]:
        taken = [list(vars(self.sampling).values()) if self.sampling is not None else None, self.rates]
        entries = [clip.entry for clip in self._clips]
        conditions = [[hash_files(_files(file)) for file in entry.conditions] for entry in entries]
        return {
            "image": content_hash(
                "clips image", self.keys, taken, self.motions, [self.hash(i) for i in range(len(entries))]
            ),
            "condition": content_hash("clips condition", self.keys, taken, conditions),
            "caption": content_hash("clips caption", self.keys, self.captions),
        }

    def _look(self, entry: Entry) -> _Clip:
        info = clip_info(entry.image)
        rate = entry.rate if entry.rate is not None else info.rate
        offsets = self.sampling.offsets(rate) if self.sampling is not None else list(range(info.frames))
        return _Clip(entry, info, rate, offsets)

    def _refuse_rates(self) -> None:
        wanted = None if self.sampling is None else self.sampling.rate
        if wanted is None:
            return
        unknown = [c.entry.key for c in self._clips if c.rate is None]
        if unknown:
            raise LisaError(
                f"{self.name!r} has {len(unknown)} clips of unknown frame rate ({few(unknown)}), "
                f"{wanted:g} frames per second are asked for",
                "Write frame_rate into metadata.jsonl for each, or ask for no frame rate: every frame is then taken",
            )
        slow = [f"{c.entry.key} ({c.rate:g})" for c in self._clips if c.rate is not None and c.rate < _NEARLY * wanted]
        if slow:
            raise LisaError(
                f"{self.name!r} has clips of fewer than {wanted:g} frames per second: {few(slow)}",
                "Ask for a lower frame rate, or take them out",
            )

    def _refuse_short(self) -> None:
        if self.sampling is None or self.sampling.short == "repeat":
            return
        short = [c.entry.key for c in self._clips if c.info.frames <= c.offsets[-1]]
        if short:
            clip = next(c for c in self._clips if c.entry.key == short[0])
            raise LisaError(
                f"{self.name!r} has {len(short)} clips that are too short ({few(short)}): {short[0]!r} has "
                f"{clip.info.frames} frames, {clip.offsets[-1] + 1} are needed",
                "Ask for fewer frames or a higher frame rate, take them out, or have their last frame repeated "
                "(short_clips=repeat)",
            )

    def _refuse_other(self, clip: _Clip, file: Path) -> None:
        """Refuse a condition that is not one of this clip, frame by frame."""
        if file in self._belong:
            return
        info, remedy = clip_info(file), "Make the condition again from this clip"
        (height, width), (tall, wide) = info.size, clip.info.size
        strangers = set(info.names or ()) - set(clip.info.names or info.names or ())
        if info.frames != clip.info.frames:
            problem = f"has {info.frames} frames, its clip {clip.info.frames}"
        elif info.size != clip.info.size:
            problem = f"is {width}x{height} pixels, its clip {wide}x{tall}"
        elif strangers:
            problem = f"has a frame {min(strangers)!r}, its clip none of that name"
            remedy = "Name both frame by frame alike"
        else:
            self._belong.add(file)
            return
        raise LisaError(f"{self.name}: the condition {file.name!r} of {clip.entry.key!r} {problem}", remedy)


def clip_folder(
    path: str | Path,
    sampling: Sampling | None,
    *,
    require_condition: bool = True,
    default_caption: str | None = None,
    conditions: Sequence[str] = (),
) -> ClipFolder:
    """Open a folder of clips, conditions and captions (the layout is in the module's documentation).

    Args:
        path: the folder.
        sampling: which frames of a clip make a sample; None: all, whatever their number.
        require_condition: False takes clips without conditions, and a folder of videos without ``clips/``.
        default_caption: the caption of clips that have none; without it they are an error.
        conditions: names of the kinds of conditions, as of :func:`lisa.data.folders.paired_folder`.

    Raises:
        LisaError: no such folder, no clips in it, clips without condition or caption (named), clips that are too short
            or too slow for ``sampling``, a clip that cannot be read, or PyAV is needed and not installed.
    """
    root, entries = read_layout(
        path, CLIPS, require_condition=require_condition, default_caption=default_caption, conditions=conditions
    )
    return ClipFolder(root, entries, sampling)


def holds_clips(folder: str | Path) -> bool:
    """Whether a folder can be read as one of clips: it has ``clips/``, or videos and neither pictures nor tables."""
    root = Path(folder).expanduser()
    if (root / "clips").is_dir() or not root.is_dir():
        return root.is_dir()
    return bool(list_videos(root)) and not pictures_beside(root) and not any(root.rglob("*.parquet"))


def holds_only_clips(folder: str | Path) -> bool:
    """Whether a folder cannot be meant as one of pictures: it holds clips, and no picture beside them."""
    root = Path(folder).expanduser()
    if not (root / "clips").is_dir():
        return holds_clips(root)
    return any_clip(root / "clips") and not pictures_beside(root)


def pictures_beside(root: Path) -> list[Path]:
    """The pictures in a folder that are neither in ``clips/`` nor in ``conditions/``."""
    return [f for f in list_images(root) if f.relative_to(root).parts[0] not in ("clips", "conditions")]


def _files(path: Path) -> list[Path]:
    return frame_files(path) if path.is_dir() else [path]
