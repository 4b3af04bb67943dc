"""From a folder of photographs, or of clips, to the paired layout.

That is ``images/`` (or ``clips/``: a folder of frames each), ``conditions/`` and ``metadata.jsonl``. Every picture
written carries a stamp (a hash of the photograph's bytes and of the settings) in a text chunk of the PNG. A second run
keeps what bears the right stamp and makes the rest; it never takes a stale picture for a good one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisa.common.errors import LisaError, choose
from lisa.common.files import write_json, write_text
from lisa.data import conditions
from lisa.data.clips import ClipFolder, clip_folder, holds_only_clips, pictures_beside
from lisa.data.folders import PairedFolder, paired_folder, require_folder
from lisa.data.images import list_images, load_rgb, read_note, save_png
from lisa.data.samples import ByteArray, content_hash
from lisa.data.transforms import PairedTransform
from lisa.data.video import list_videos

_STAMP = "lisa:made-from"
_SMALLEST_CROP = 1 / 3  # of the largest crop's side, where several crops are cut from one picture


@dataclass(frozen=True)
class PrepareReport:
    """What :func:`prepare` did. ``uncaptioned`` counts samples whose caption is empty."""

    out: Path
    condition: str
    samples: int
    made: int
    kept: int
    uncaptioned: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "out": str(self.out)}


@dataclass(frozen=True)
class _Job:
    """One sample to make: crop ``number`` of the source's picture ``index``; of a clip, of all its ``frames``."""

    index: int
    number: int
    key: str
    stamp: str
    caption: str
    frames: int | None = None
    rate: float | None = None
    motion: float | None = None

    @property
    def parts(self) -> tuple[str, str]:
        return ("images" if self.frames is None else "clips", "conditions")

    def files(self, target: Path, part: str) -> list[Path]:
        """What is written of the sample into ``images/``, ``clips/`` or ``conditions/``."""
        if self.frames is None:
            return [target / part / f"{self.key}.png"]
        return [target / part / self.key / f"{number:05d}.png" for number in range(self.frames)]


def prepare(
    folder: str | Path,
    condition: str,
    out: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    crops_per_image: int = 1,
    caption: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> PrepareReport:
    """Make a paired folder from photographs or clips. Run again after an interruption, it keeps good pictures.

    Args:
        folder: photographs, at any depth, or a folder with ``images/``; videos, or a folder with ``clips/`` (see
            :mod:`lisa.data.clips`). Captions are taken over where there are any, frame rates and motions too.
        condition: one of :data:`lisa.data.conditions.NAMES`.
        out: where to; by default ``<folder>-<condition>`` beside it.
        size: side, or (height, width), of the results; None keeps every picture as it is. All frames of a clip are cut
            alike.
        crops_per_image: 1 takes the largest centred crop; more take that many random ones of random zoom, named
            ``<key>__crop<number>``, which the held-out split keeps together.
        caption: for pictures that have none; ``{name}`` becomes the file's name in words. None leaves it empty.
        overwrite: replace pictures that were made with other settings.
        seed: of the random crops.
        progress: called with (done, all) after every sample.
        **options: of the condition's ``extract``.

    Raises:
        LisaError: an unknown condition, no pictures, pictures and videos beside each other, an unreadable one, or other
                pictures where these would go.
    """
    choose("condition", condition, conditions.NAMES)
    height_width = _check_size(size, crops_per_image)
    source = _open(folder)
    target = _check_out(source.path, out, condition)
    settings = [condition, height_width, crops_per_image, seed if crops_per_image > 1 else None, options]
    jobs = _jobs(source, settings, crops_per_image, caption)
    _clear_others(target, jobs, overwrite)
    todo = _unfinished(target, jobs, overwrite)
    for done, job in enumerate(todo, start=1):
        files = zip(*[job.files(target, part) for part in job.parts], strict=True)
        for frame, (image_file, condition_file) in zip(source.frames(job.index), files, strict=True):
            image = _cut(frame, height_width, crops_per_image, [seed, job.key])
            save_png(conditions.make(condition, image, **options), condition_file, _note(job))
            save_png(image, image_file, _note(job))
        if progress is not None:
            progress(len(jobs) - len(todo) + done, len(jobs))
    _write_records(target, jobs, condition, height_width, crops_per_image, options)
    empty = sum(not job.caption for job in jobs)
    return PrepareReport(target, condition, len(jobs), len(todo), len(jobs) - len(todo), empty)


def _open(folder: str | Path) -> PairedFolder | ClipFolder:
    """The source, every file of which has been looked at before the first long computation."""
    _refuse_mixture(Path(folder).expanduser())
    if holds_only_clips(folder):
        clips = clip_folder(folder, None, require_condition=False, default_caption="")
        clips.check(conditions=False)
        return clips
    source = paired_folder(folder, require_condition=False, default_caption="")
    for index in range(len(source)):
        source.sizes(index)
    for index in source.suspects():
        load_rgb(source.paths(index)[0])
    return source


def _refuse_mixture(root: Path) -> None:
    """Nobody can tell whether the pictures are thumbnails of the videos, or the videos bystanders of photographs."""
    if not root.is_dir() or (root / "images").is_dir() or not (videos := list_videos(root)):
        return
    if pictures := pictures_beside(root):
        raise LisaError(
            f"{str(root)!r} holds both pictures (such as {pictures[0].name!r}) and videos (such as {videos[0].name!r})",
            "Put pictures and videos into folders of their own, and prepare each by itself",
        )


def _check_size(size: int | tuple[int, int] | None, crops: int) -> tuple[int, int] | None:
    if crops < 1:
        raise LisaError(f"crops per image is {crops}, it must be at least 1")
    if size is None:
        if crops > 1:
            raise LisaError(f"{crops} crops per image need a size", "Give the size of the crops in pixels")
        return None
    pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(pair) < 8:
        raise LisaError(f"size is {pair[0]}x{pair[1]}, it must be at least 8")
    return pair


def _check_out(folder: Path, out: str | Path | None, condition: str) -> Path:
    root = folder.resolve()
    target = root.with_name(f"{root.name}-{condition}") if out is None else Path(out).expanduser()
    if target.resolve() == root or root in target.resolve().parents:
        raise LisaError(
            f"the results would go into the folder of photographs itself ({str(target)!r})",
            "Write to a folder outside of it",
        )
    if target.exists():
        require_folder(target)
    return target


def _jobs(source: PairedFolder | ClipFolder, settings: list[Any], crops: int, template: str | None) -> list[_Job]:
    jobs = []
    for index, (key, given) in enumerate(zip(source.keys, source.captions, strict=True)):
        words = key.rsplit("/", 1)[-1].replace("_", " ").replace("-", " ")
        caption = given or (template or "").replace("{name}", words)
        origin, clip = source.hash(index), {}
        if isinstance(source, ClipFolder):
            clip = {"frames": source.count(index), "rate": source.rates[index], "motion": source.motions[index]}
        for number in range(crops):
            name = key if crops == 1 else f"{key}__crop{number:03d}"
            stamp = content_hash("prepare", origin, settings, number)
            jobs.append(_Job(index, number, name, stamp, caption, **clip))
    return jobs


def _clear_others(target: Path, jobs: list[_Job], overwrite: bool) -> None:
    """Pictures from an earlier run that are not among the present ones would silently join the data set."""
    for part in ("images", "clips", "conditions"):
        folder = target / part
        files = list_images(folder) if folder.is_dir() else []
        expected = {file for job in jobs if part in job.parts for file in job.files(target, part)}
        others = [f for f in files if f not in expected]
        foreign = [f for f in others if read_note(f, _STAMP) is None]
        if foreign or (others and not overwrite):
            remedy = "Write to another folder" + ("" if foreign else ", or overwrite")
            raise LisaError(
                f"{str(folder)!r} holds {len(others)} other pictures (such as {(foreign or others)[0].name!r})", remedy
            )
        for file in others:
            file.unlink()


def _unfinished(target: Path, jobs: list[_Job], overwrite: bool) -> list[_Job]:
    todo = []
    for job in jobs:
        files = [file for part in job.parts for file in job.files(target, part)]
        stamps = [read_note(f, _STAMP) for f in files]
        if set(stamps) == {job.stamp}:
            continue
        for file, stamp in zip(files, stamps, strict=True):
            if stamp != job.stamp and not overwrite and _is_whole(file):
                raise LisaError(
                    f"{str(file)!r} was made from another picture or with other settings",
                    "Write to another folder, or overwrite",
                )
        todo.append(job)
    return todo


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_rgb(path)
    except LisaError:
        return False
    return True


def _cut(image: ByteArray, size: tuple[int, int] | None, crops: int, seed: list[Any]) -> ByteArray:
    if size is None:
        return image
    if crops == 1:
        return PairedTransform(size).fit(image, 0, "lanczos")
    height, width = image.shape[:2]
    side = min(height / size[0], width / size[1])  # of the largest crop, in target sides
    rng = np.random.default_rng(int(content_hash("crop", *seed, length=32), 16))
    zoom, down, right = rng.random(3)
    least = min(1.0, max(_SMALLEST_CROP, 1 / side))  # never enlarge what need not be enlarged
    scale = side * (least + (1 - least) * zoom)
    top, left = down * (height - scale * size[0]), right * (width - scale * size[1])
    box = (left, top, min(width, left + scale * size[1]), min(height, top + scale * size[0]))
    picture = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
    return np.asarray(picture)


def _write_records(
    target: Path, jobs: list[_Job], condition: str, size: tuple[int, int] | None, crops: int, options: dict[str, Any]
) -> None:
    lines = [json.dumps(_row(job), ensure_ascii=False) + "\n" for job in jobs]
    write_text(target / "metadata.jsonl", "".join(lines))
    about = {"condition": condition, "size": size, "crops_per_image": crops, "options": options, "samples": len(jobs)}
    write_json(target / "prepare.json", about)


def _row(job: _Job) -> dict[str, Any]:
    """What ``metadata.jsonl`` says of a sample."""
    suffix = ".png" if job.frames is None else ""
    paths = [f"{part}/{job.key}{suffix}" for part in job.parts]
    known = {"frame_rate": job.rate, "motion_bucket_id": job.motion}
    told = {name: value for name, value in known.items() if value is not None}
    return {"file_name": paths[0], "conditioning_image": paths[1], "text": job.caption, **told}


def _note(job: _Job) -> dict[str, str]:
    return {_STAMP: job.stamp}
