"""Opening sources by name, and checking one before long work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, choose
from lisa.data import scenes
from lisa.data.folders import PairedFolder, paired_folder, require_folder
from lisa.data.samples import PARTS, Part, Sample, Source, content_hash, stack_pictures, unstack_pictures
from lisa.data.tables import TableSource, hub, parquet

__all__ = [
    "PairedFolder",
    "ScenesSource",
    "SourceReport",
    "TableSource",
    "check_source",
    "hub",
    "open_source",
    "paired_folder",
    "parquet",
]

_SCENES = "scenes"
_SCENES_VERSION = 2  # raise it when a scene of the same seed and index looks different


class ScenesSource:
    """Procedural scenes with exact conditions and exact truth (see :mod:`lisa.data.scenes`).

    Args:
        condition: one of :data:`lisa.data.scenes.SCENE_CONDITIONS`, several of them to be stacked in that order, or
            None for pictures alone.
        seed: the stream of scenes.
        count: how many.
        size: side of the pictures in pixels.
        start: number of the first one; disjoint ranges of one stream never share a scene.

    Raises:
        LisaError: an unknown condition or an impossible number.
    """

    def __init__(
        self,
        condition: str | Sequence[str] | None = None,
        seed: int = 0,
        count: int = 10_000,
        size: int = 64,
        start: int = 0,
    ) -> None:
        names = [condition] if isinstance(condition, str) else list(condition or ())
        for name in names:
            choose("scene condition", name, scenes.SCENE_CONDITIONS)
        for what, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0), ("start", start, 0)):
            if value < least:
                raise LisaError(f"scenes: {what} is {value}, it must be at least {least}")
        if "lowres" in names and size % 8:
            raise LisaError(f"scenes: size is {size}, for 'lowres' it must be a multiple of 8")
        self.conditions, self.seed, self.count, self.size, self.start = names, seed, count, size, start
        self.name = f"{_SCENES}:{'+'.join(names)}" if names else _SCENES

    @cached_property
    def keys(self) -> list[str]:
        """``scene-<seed>-<number>``."""
        return [self._key(i) for i in range(self.count)]

    @cached_property
    def captions(self) -> list[str]:
        """Captions without drawing any picture."""
        return [scenes.make_scene(self.seed, self.start + i).caption() for i in range(self.count)]

    @property
    def fingerprint(self) -> str:
        """Hash of all settings."""
        return content_hash(_SCENES, [self.part_fingerprint(part) for part in PARTS])

    def part_fingerprint(self, part: Part) -> str:
        """Hash of the settings that affect one part of the samples."""
        stream = [_SCENES_VERSION, self.seed, self.start, self.count]
        condition = self.conditions[0] if len(self.conditions) == 1 else self.conditions or None
        own = {"image": [self.size], "condition": [self.size, condition], "caption": []}[part]
        return content_hash(_SCENES, part, stream, own)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        index %= self.count
        scene = scenes.make_scene(self.seed, self.start + index)
        drawn = [scene.condition(name, self.size) for name in self.conditions]
        return Sample(
            key=self._key(index),
            image=scene.image(self.size),
            condition=stack_pictures(drawn, self._key(index)) if drawn else None,
            caption=scene.caption(),
            truth={**scene.truth(), "instances": scene.instances(self.size)},
        )

    def _key(self, index: int) -> str:
        return f"scene-{self.seed}-{self.start + index:07d}"


def open_source(
    spec: str | Path,
    *,
    require_condition: bool = True,
    default_caption: str | None = None,
    conditions: Sequence[str] = (),
    scene_options: dict[str, Any] | None = None,
    table_options: dict[str, Any] | None = None,
    hub_options: dict[str, Any] | None = None,
) -> Source:
    """The source that ``spec`` names.

    Args:
        spec: ``scenes`` or ``scenes:edges``; a folder in the paired layout; a parquet file or a folder of them; or a
            Hub name ``owner/name`` (``hub:owner/name`` where a local folder has the same name).
        require_condition: refuse a source without conditions.
        default_caption: the caption of samples that have none.
        conditions: the names of the conditions: what scenes draw, and where a folder has several, which to read.
        scene_options: arguments of :class:`ScenesSource`.
        table_options: arguments of :func:`lisa.data.tables.parquet` or :func:`lisa.data.tables.hub`.
        hub_options: arguments of :func:`lisa.data.tables.hub` alone, such as ``split``.

    Raises:
        LisaError: nothing of that name, or a problem of the source itself.
    """
    text = str(spec)
    if text.split(":")[0] == _SCENES:
        named = {"condition": list(conditions)} if conditions else {}
        return _open_scenes(text, require_condition, {**named, **(scene_options or {})})
    options = dict(table_options or {}, default_caption=default_caption)
    if not require_condition:
        options.setdefault("condition_column", None)
    if text.startswith("hub:"):
        return hub(text.removeprefix("hub:"), **options, **(hub_options or {}))
    path = Path(text).expanduser()
    if path.suffix == ".parquet" or _holds_parquet(path):
        return parquet(path, **options)
    if not path.exists() and _could_be_hub_name(text):
        try:
            return hub(text, **options, **(hub_options or {}))
        except LisaError as error:
            raise LisaError(f"there is no folder {text!r}, and as a Hub name: {error.problem}", error.remedy) from error
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


def check_source(source: Source, sample_limit: int | None = 1000, *, require_condition: bool = True) -> SourceReport:
    """Read samples of a source before long work, so that bad files are found now and not after hours.

    Args:
        source: what to check.
        sample_limit: decode at most this many samples, evenly spread (None: all). Files that look truncated from
            their ends are decoded in any case, and the sizes of all pictures in folders are compared.
        require_condition: a sample without condition is an error.

    Raises:
        LisaError: an unreadable or truncated picture, a condition of another size than its image, no condition, or
            condition pictures that are all constant. Every message names the sample or file.
    """
    if len(source) == 0:
        raise LisaError(f"{source.name} holds no samples")
    picked = _spread(len(source), sample_limit) | _suspects(source)
    shapes, flat = [], []
    for index in sorted(picked):
        sample = source[index]
        shapes.append(sample.image.shape[:2])
        if sample.condition is None:
            if require_condition:
                raise LisaError(f"{source.name}: sample {sample.key!r} has no condition")
            continue
        _same_size(source.name, sample.key, sample.image.shape[:2], sample.condition.shape[:2])
        flat.append([bool((each == each[0, 0]).all()) for each in unstack_pictures(sample.condition)])
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


def _same_size(name: str, key: str, image: Sequence[int], condition: Sequence[int] | None) -> None:
    if condition is not None and tuple(image) != tuple(condition):
        sizes = f"{condition[1]}x{condition[0]} pixels, its image {image[1]}x{image[0]}"
        raise LisaError(
            f"{name}: the condition of {key!r} is {sizes}",
            "Image and condition must have the same size: make the condition again from this image",
        )


def _spread(count: int, limit: int | None) -> set[int]:
    if limit is None or limit >= count:
        return set(range(count))
    return {i * count // max(1, limit) for i in range(max(1, limit))}


def _open_scenes(text: str, require_condition: bool, options: dict[str, Any]) -> ScenesSource:
    name, _, condition = text.partition(":")
    options = dict(options)
    if condition:
        options["condition"] = condition
    if require_condition and not options.get("condition"):
        raise LisaError(
            f"{name!r} does not say which condition", f"Write '{name}:edges'", choices=scenes.SCENE_CONDITIONS
        )
    return ScenesSource(**options)


def _holds_parquet(path: Path) -> bool:
    return path.is_dir() and not (path / "images").is_dir() and any(path.rglob("*.parquet"))


def _could_be_hub_name(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")
