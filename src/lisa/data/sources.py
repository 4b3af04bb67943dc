"""Opening sources by name, and checking one before long work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError
from lisa.data.clips import ClipFolder, Sampling, clip_folder, holds_clips, holds_only_clips
from lisa.data.folders import PairedFolder, paired_folder, require_folder
from lisa.data.samples import ByteArray, Source, describe_size, unstack_pictures
from lisa.data.scene_sources import MovingScenesSource, ScenesSource
from lisa.data.scenes import SCENE_CONDITIONS
from lisa.data.tables import TableSource, hub, parquet

__all__ = [
    "ClipFolder",
    "MovingScenesSource",
    "PairedFolder",
    "Sampling",
    "ScenesSource",
    "SourceReport",
    "TableSource",
    "check_source",
    "clip_folder",
    "hub",
    "open_source",
    "paired_folder",
    "parquet",
]

_SCENES: dict[str, type[ScenesSource]] = {each.kind: each for each in (ScenesSource, MovingScenesSource)}


def open_source(
    spec: str | Path,
    *,
    require_condition: bool = True,
    default_caption: str | None = None,
    conditions: Sequence[str] = (),
    sampling: Sampling | None = None,
    scene_options: dict[str, Any] | None = None,
    table_options: dict[str, Any] | None = None,
    hub_options: dict[str, Any] | None = None,
) -> Source:
    """The source that ``spec`` names.

    Args:
        spec: ``scenes`` or ``scenes:edges``, ``moving-scenes:edges``; a folder in the paired layout, of pictures or of
            clips; a parquet file or a folder of them; or a Hub name ``owner/name`` (``hub:owner/name`` where a local
            folder has the same name).
        require_condition: refuse a source without conditions.
        default_caption: the caption of samples that have none.
        conditions: the names of the conditions: what scenes draw, and where a folder has several, which to read.
        sampling: which frames of a clip make a sample; None: the source gives pictures (of ``moving-scenes``: clips of
            its own default).
        scene_options: arguments of :class:`ScenesSource`.
        table_options: arguments of :func:`lisa.data.tables.parquet` or :func:`lisa.data.tables.hub`.
        hub_options: arguments of :func:`lisa.data.tables.hub` alone, such as ``split``.

    Raises:
        LisaError: nothing of that name, pictures where clips are asked for, clips where pictures are, or a problem of
            the source itself.
    """
    text = str(spec)
    if text.split(":")[0] in _SCENES:
        named = {"condition": list(conditions)} if conditions else {}
        return _open_scenes(text, require_condition, sampling, {**named, **(scene_options or {})})
    path = Path(text).expanduser()
    if sampling is not None and holds_clips(path):
        return clip_folder(
            path,
            sampling,
            require_condition=require_condition,
            default_caption=default_caption,
            conditions=conditions,
        )
    if sampling is not None:
        if not text.startswith("hub:") and path.suffix != ".parquet":
            require_folder(spec)
        raise _no_clips(text, sampling)
    options = dict(table_options or {}, default_caption=default_caption)
    if not require_condition:
        options.setdefault("condition_column", None)
    if text.startswith("hub:"):
        return hub(text.removeprefix("hub:"), **options, **(hub_options or {}))
    if path.suffix == ".parquet" or _holds_parquet(path):
        return parquet(path, **options)
    if not path.exists() and _could_be_hub_name(text):
        try:
            return hub(text, **options, **(hub_options or {}))
        except LisaError as error:
            raise LisaError(f"there is no folder {text!r}, and as a Hub name: {error.problem}", error.remedy) from error
    # Where pictures cannot be meant; without conditions, a plain folder of pictures may well have one called clips.
    only = holds_clips(path) and not (path / "images").is_dir() if require_condition else holds_only_clips(path)
    if only:
        raise LisaError(f"{text!r} holds clips", "Say how many frames a sample has (data.frames)")
    return paired_folder(
        require_folder(spec),
        require_condition=require_condition,
        default_caption=default_caption,
        conditions=conditions,
    )


@dataclass
class SourceReport:
    """What :func:`check_source` saw."""

    samples: int
    checked: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    notes: list[str] = field(default_factory=list)


_CLIPS_READ = 64  # that many at least, where there are as many


def check_source(source: Source, sample_limit: int | None = 1000, *, require_condition: bool = True) -> SourceReport:
    """Read samples of a source before long work, so that bad files are found now and not after hours.

    Args:
        source: what to check.
        sample_limit: decode at most this many samples, evenly spread (None: all). Files that look truncated from
            their ends are decoded in any case, and the sizes of all pictures in folders are compared. Of the other
            videos the tables are read.
        require_condition: a sample without condition is an error.

    Raises:
        LisaError: an unreadable or truncated picture, a condition of another size than its image (or another number of
            frames than its clip), no condition, or condition pictures that are all constant. Every message names the
            sample or file.
    """
    if len(source) == 0:
        raise LisaError(f"{source.name} holds no samples")
    picked = read = _spread(len(source), sample_limit) | _suspects(source)
    if isinstance(source, ClipFolder):
        source.check(picked)  # every frame of them: to read all once more tells little
        read = set(sorted(picked)[:: max(1, len(picked) // _CLIPS_READ)])
    shapes, flat = [], []
    for index in sorted(read):
        sample = source[index]
        height, width = sample.image.shape[-3:-1]
        shapes.append((height, width))
        if sample.condition is None:
            if require_condition:
                raise LisaError(f"{source.name}: sample {sample.key!r} has no condition")
            continue
        _same_size(source.name, sample.key, sample.image, sample.condition)
        flat.append([bool((each == each.reshape(-1, 3)[0]).all()) for each in unstack_pictures(sample.condition)])
    return SourceReport(len(source), len(picked), min(shapes), max(shapes), _constant(source, flat))


def _suspects(source: Source) -> set[int]:
    """Samples of a folder to decode in any case: files that look truncated, heads that tell of unequal sizes."""
    if not isinstance(source, PairedFolder):
        return set()
    unequal = {i for i in range(len(source)) if len(set(source.sizes(i))) > 1}
    return unequal | set(source.suspects())


def _constant(source: Source, flat: Sequence[Sequence[bool]]) -> list[str]:
    """``flat``: for each sample checked, whether each of its stacked condition pictures is of one colour."""
    notes = []
    for number, column in enumerate(zip(*flat, strict=True), start=1):
        constant, where = sum(column), f" of condition {number}" if len(flat[0]) > 1 else ""
        if constant == len(column):
            raise LisaError(
                f"{source.name}: all {constant} condition images{where} checked are constant (one colour each)",
                "A side network cannot learn from them: check how the conditions were made",
            )
        if constant:
            notes.append(f"{constant} of {len(column)} condition images{where} checked are constant")
    return notes


def _same_size(name: str, key: str, image: ByteArray, condition: ByteArray) -> None:
    if image.shape[:-1] != condition.shape[:-1]:
        raise LisaError(
            f"{name}: the condition of {key!r} is {describe_size(condition)}, its image {describe_size(image)}",
            "Image and condition must have the same size: make the condition again from this image",
        )


def _spread(count: int, limit: int | None) -> set[int]:
    if limit is None or limit >= count:
        return set(range(count))
    return {i * count // max(1, limit) for i in range(max(1, limit))}


def _open_scenes(
    text: str, require_condition: bool, sampling: Sampling | None, options: dict[str, Any]
) -> ScenesSource:
    name, _, condition = text.partition(":")
    options = dict(options)
    if condition:
        options["condition"] = condition
    if require_condition and not options.get("condition"):
        raise LisaError(f"{name!r} does not say which condition", f"Write '{name}:edges'", choices=SCENE_CONDITIONS)
    if sampling is not None:
        if name != MovingScenesSource.kind:
            raise _no_clips(text, sampling)
        options["frames"] = sampling.frames
        options |= {} if sampling.rate is None else {"rate": sampling.rate}
    return _SCENES[name](**options)


def _no_clips(text: str, sampling: Sampling) -> LisaError:
    return LisaError(
        f"{text!r} gives pictures, clips of {sampling.frames} frames are asked for",
        f"Use a folder with clips/, or '{MovingScenesSource.kind}'; or leave the number of frames (data.frames) empty",
    )


def _holds_parquet(path: Path) -> bool:
    return path.is_dir() and not (path / "images").is_dir() and any(path.rglob("*.parquet"))


def _could_be_hub_name(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")
