"""Scenes as sources: still ones, and moving ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import numpy as np

from lisa.common.errors import LisaError, choose
from lisa.data.moving import MovingScene, make_moving_scene
from lisa.data.samples import PARTS, LazyTruth, Part, Sample, content_hash, stack_pictures
from lisa.data.scenes import SCENE_CONDITIONS, Scene, make_scene

#: Frames per second of moving scenes, unless another rate is asked for.
MOVING_RATE = 8.0


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

    kind: ClassVar[str] = "scenes"
    _version = 2  # raise it when a scene of the same seed and index looks different
    _make: Callable[[int, int], Any] = staticmethod(make_scene)

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
            choose("scene condition", name, SCENE_CONDITIONS)
        for what, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0), ("start", start, 0)):
            if value < least:
                raise LisaError(f"{self.kind}: {what} is {value}, it must be at least {least}")
        if "lowres" in names and size % 8:
            raise LisaError(f"{self.kind}: size is {size}, for 'lowres' it must be a multiple of 8")
        self.conditions, self.seed, self.count, self.size, self.start = names, seed, count, size, start
        self.name = f"{self.kind}:{'+'.join(names)}" if names else self.kind

    @cached_property
    def keys(self) -> list[str]:
        """``scene-<seed>-<number>``, or ``moving-scene-<seed>-<number>``."""
        return [self._key(i) for i in range(self.count)]

    @cached_property
    def captions(self) -> list[str]:
        """Captions without drawing any picture."""
        return [self._make(self.seed, self.start + i).caption() for i in range(self.count)]

    @property
    def fingerprint(self) -> str:
        """Hash of all settings."""
        return content_hash(self.kind, [self.part_fingerprint(part) for part in PARTS])

    def part_fingerprint(self, part: Part) -> str:
        """Hash of the settings that affect one part of the samples."""
        stream = [self._version, self.seed, self.start, self.count]
        condition = self.conditions[0] if len(self.conditions) == 1 else self.conditions or None
        own = {"image": self._drawing(), "condition": [*self._drawing(), condition], "caption": []}[part]
        return content_hash(self.kind, part, stream, own)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        index %= self.count
        return self._draw(self._make(self.seed, self.start + index), self._key(index))

    def _draw(self, scene: Scene, key: str) -> Sample:
        drawn = [scene.condition(name, self.size) for name in self.conditions]
        return Sample(
            key=key,
            image=scene.image(self.size),
            condition=stack_pictures(drawn, key) if drawn else None,
            caption=scene.caption(),
            truth={**scene.truth(), "instances": scene.instances(self.size)},
        )

    def _drawing(self) -> list[Any]:
        """The settings of all that is drawn."""
        return [self.size]

    def _key(self, index: int) -> str:
        return f"{self.kind.removesuffix('s')}-{self.seed}-{self.start + index:07d}"


class MovingScenesSource(ScenesSource):
    """Clips of moving scenes (see :mod:`lisa.data.moving`), with exact conditions of every frame and exact truth.

    ``truth`` holds, beside colours, kinds and depths, ``instances`` (F, H, W) and the exact motion from each frame to
    the next: ``flow`` (F - 1, H, W, 2) in pixels and ``visible`` (F - 1, H, W); see
    :meth:`lisa.data.moving.MovingScene.flow`. These are computed when they are asked for.

    Args:
        condition: as of :class:`ScenesSource`.
        seed: the stream; a moving scene begins as the still scene of the same stream and number.
        count: how many.
        size: side of the frames in pixels.
        start: number of the first one.
        frames: of a clip.
        rate: frames per second. Shapes move in seconds: a clip of twice the rate shows the same motion more finely.

    Raises:
        LisaError: an unknown condition or an impossible number.
    """

    kind = "moving-scenes"
    _version = 1
    _make = staticmethod(make_moving_scene)

    def __init__(
        self,
        condition: str | Sequence[str] | None = None,
        seed: int = 0,
        count: int = 10_000,
        size: int = 64,
        start: int = 0,
        frames: int = 8,
        rate: float = MOVING_RATE,
    ) -> None:
        super().__init__(condition, seed, count, size, start)
        if frames < 2:
            raise LisaError(f"{self.kind}: frames is {frames}, it must be at least 2")
        if not rate > 0:
            raise LisaError(f"{self.kind}: rate is {rate}, it must be above 0")
        self.frames, self.rate = frames, float(rate)

    def _draw(self, scene: MovingScene, key: str) -> Sample:  # type: ignore[override]
        clip = (self.frames, self.rate, self.size)
        drawn = [scene.condition(name, *clip) for name in self.conditions]
        return Sample(
            key=key,
            image=scene.clip(*clip),
            condition=stack_pictures(drawn, key) if drawn else None,
            caption=scene.caption(),
            truth=self._truth(scene),
            rate=self.rate,
        )

    def _truth(self, scene: MovingScene) -> Mapping[str, Any]:
        @cache
        def flows() -> list[Any]:
            times = [number / self.rate for number in range(self.frames)]
            return [scene.flow(one, next_one, self.size) for one, next_one in itertools.pairwise(times)]

        return LazyTruth(
            scene.start.truth(),
            {
                "instances": partial(scene.instances, self.frames, self.rate, self.size),
                "flow": lambda: np.stack([flow.displacement for flow in flows()]),
                "visible": lambda: np.stack([flow.visible for flow in flows()]),
            },
        )

    def _drawing(self) -> list[Any]:
        return [self.size, self.frames, self.rate]
