"""Moving scenes: the shapes of a still scene drift, bounce, leave and turn, and pass in front of each other.

A moving scene is fully determined by ``(seed, index)`` and begins as the still scene of the same numbers. At any time
it *is* one (:meth:`MovingScene.at`): its frames, its conditions and its segmentation are drawn by
:mod:`lisa.data.scenes` and as exact as there, and so is the way that every pixel moves from one time to another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lisa.data.scenes import (
    ByteArray,
    FloatArray,
    IntArray,
    Scene,
    Shape,
    make_scene,
    pixel_grid,
    signed_distance,
)

_SPEEDS = (0.15, 0.5)  # sides of the picture per second
_SPINS = (0.5, 2.0)  # radians per second
_RESTS, _TURNS, _BOUNCES = 0.15, 0.5, 0.6  # shares of the shapes
_WALL = 0.85  # a bouncing centre stays that many radii from the border, as a still scene's does
_ROUNDING = 1e-3  # pixels
_STREAM = 1  # keeps the draws of the motion apart from those of the still scene


@dataclass(frozen=True)
class Motion:
    """How a shape moves: sides of the picture and radians per second, x to the right, y down."""

    velocity: tuple[float, float]
    spin: float
    bounces: bool  # at the picture's border; else it leaves

    def move(self, shape: Shape, time: float) -> Shape:
        """``shape`` after ``time`` seconds."""
        x, y = shape.x + self.velocity[0] * time, shape.y + self.velocity[1] * time
        if self.bounces:
            wall = _WALL * shape.radius
            x, y = _reflected(x, wall, 1 - wall), _reflected(y, wall, 1 - wall)
        return replace(shape, x=x, y=y, angle=shape.angle + self.spin * time)

    def words(self) -> str:
        """What the shape sets out to do; nothing where it rests."""
        speed = math.hypot(*self.velocity)
        across, down = (v / speed if speed and abs(v) > speed * math.sin(math.pi / 8) else 0.0 for v in self.velocity)
        ways = [
            way
            for way, there in (("up", down < 0), ("down", down > 0), ("left", across < 0), ("right", across > 0))
            if there
        ]
        doing = [f"moving {' and '.join(ways)}"] if ways else []
        return " while ".join([*doing, *(["turning"] if self.spin else [])])


@dataclass(frozen=True)
class Flow:
    """Where the pixels of one frame are in another.

    Attributes:
        displacement: float32 (size, size, 2), in pixels, x to the right and y down. The background rests.
        visible: bool (size, size), where what a pixel shows is seen in the other frame, too.
    """

    displacement: FloatArray
    visible: NDArray[np.bool_]


@dataclass(frozen=True)
class MovingScene:
    """A scene that moves: how it ``start`` s, and a motion for each of its shapes. Times are in seconds."""

    start: Scene
    motions: tuple[Motion, ...]

    def at(self, time: float) -> Scene:
        """The still scene at a time."""
        moved = [motion.move(shape, time) for motion, shape in zip(self.motions, self.start.shapes, strict=True)]
        return replace(self.start, shapes=tuple(moved))

    def frames(self, count: int, rate: float) -> list[Scene]:
        """The still scenes of ``count`` frames, ``rate`` of them per second."""
        return [self.at(number / rate) for number in range(count)]

    def clip(self, count: int, rate: float, size: int = 64) -> ByteArray:
        """The frames, uint8 (count, size, size, 3)."""
        return np.stack([scene.image(size) for scene in self.frames(count, rate)])

    def condition(self, name: str, count: int, rate: float, size: int = 64) -> ByteArray:
        """The exact condition ``name`` (one of :data:`lisa.data.scenes.SCENE_CONDITIONS`) of every frame, as above.

        Raises:
            LisaError: the name is not a scene condition.
        """
        return np.stack([scene.condition(name, size) for scene in self.frames(count, rate)])

    def instances(self, count: int, rate: float, size: int = 64) -> IntArray:
        """Index of the visible shape per pixel and frame, (count, size, size); see :meth:`Scene.instances`."""
        return np.stack([scene.instances(size) for scene in self.frames(count, rate)])

    def caption(self) -> str:
        """How the scene begins and what its shapes set out to do, in words."""
        return self.start.caption([motion.words() for motion in self.motions])

    def flow(self, before: float, after: float, size: int = 64, border: float = 1.0) -> Flow:
        """The exact motion from one time to another, for every pixel of the frame at ``before``.

        Args:
            before: the time of the frame whose pixels are followed.
            after: the time of the frame in which they are looked for.
            size: of the frames, in pixels.
            border: a pixel is not counted as visible where a border between two things is nearer than this, in pixels,
                in one of the frames: its colour, or what is interpolated around its goal, is a mixture there. 0 is
                visibility itself.
        """
        old, new = self.at(before), self.at(after)
        labels, (x, y) = old.instances(size), pixel_grid(size)
        goal_x, goal_y = x.copy(), y.copy()
        for number, (shape, moved) in enumerate(zip(old.shapes, new.shapes, strict=True), start=1):
            here = labels == number
            dx, dy = x[here] - shape.x, y[here] - shape.y
            cos, sin = math.cos(moved.angle - shape.angle), math.sin(moved.angle - shape.angle)
            goal_x[here], goal_y[here] = moved.x + dx * cos - dy * sin, moved.y + dx * sin + dy * cos
        first, last = 0.5 / size - _ROUNDING / size, 1 - 0.5 / size + _ROUNDING / size  # the outermost pixels' centres
        inside = (goal_x >= first) & (goal_x <= last) & (goal_y >= first) & (goal_y <= last)
        seen = _shows(old, labels, x, y, border / size) & _shows(new, labels, goal_x, goal_y, border / size)
        return Flow(np.stack([goal_x - x, goal_y - y], -1) * np.float32(size), inside & seen)


def make_moving_scene(seed: int, index: int) -> MovingScene:
    """The moving scene number ``index`` (>= 0) of the stream ``seed``; something moves in each of them."""
    start = make_scene(seed, index)
    rng = np.random.default_rng([seed, index, _STREAM])
    while True:
        motions = tuple(_draw_motion(rng, shape.kind) for shape in start.shapes)
        if any(any(motion.velocity) for motion in motions):
            return MovingScene(start, motions)


def _draw_motion(rng: np.random.Generator, kind: str) -> Motion:
    rests, turns, bounces = rng.random(3) < (_RESTS, _TURNS, _BOUNCES)
    speed, way = 0.0 if rests else rng.uniform(*_SPEEDS), rng.uniform(0, 2 * math.pi)
    spin = rng.choice([-1, 1]) * rng.uniform(*_SPINS)
    return Motion(
        velocity=(float(speed * math.cos(way)), float(speed * math.sin(way))),
        spin=float(spin) if turns and kind != "circle" else 0.0,  # a circle that turns looks as if it did not
        bounces=bool(bounces),
    )


def _reflected(place: float, low: float, high: float) -> float:
    """Where something is that would be at ``place`` if there were no walls at ``low`` and ``high``."""
    if low <= place <= high:
        return place  # exactly, so that a scene begins as the still one
    span = high - low
    return low + span - abs((place - low) % (2 * span) - span)


def _shows(scene: Scene, labels: IntArray, x: FloatArray, y: FloatArray, border: float) -> NDArray[np.bool_]:
    """Whether the points (``x``, ``y``) show their own shape (or the background), no border being nearer than that."""
    shown = np.ones(labels.shape, bool)
    for number, shape in enumerate(scene.shapes, start=1):
        distance = signed_distance(shape, x, y)
        shown &= (labels != number) | (distance <= -border + _ROUNDING / labels.shape[1])
        shown &= (labels >= number) | (distance >= border)
    return shown
