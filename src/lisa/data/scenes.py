"""Procedural scenes: coloured shapes over a background, with captions and exact conditions.

A scene is fully determined by ``(seed, index)``. Every shape is a signed distance function, so that the picture is
antialiased analytically and the segmentation, edges, depth and skeleton are exact rather than estimated from pixels.
The colours of the shapes of one scene, and of its background, are all different: a caption names each shape without
ambiguity, and :func:`label_by_colour` can read a segmentation back from a generated picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import choose
from lisa.data.conditions.lowres import block_mean

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
ByteArray = NDArray[np.uint8]

KINDS = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (243, 140, 30),
    "yellow": (247, 215, 50),
    "green": (46, 150, 70),
    "blue": (38, 84, 200),
    "purple": (130, 50, 160),
    "pink": (244, 150, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
    "gray": (128, 130, 135),
}
SIZES: dict[str, tuple[float, float]] = {  # circumscribed radius as a fraction of the picture's side
    "small": (0.16, 0.18),
    "medium": (0.22, 0.25),
    "large": (0.29, 0.33),
}
BACKGROUNDS = ("plain", "graded", "textured")
# One well separated colour per kind, shared by the segmentation and the skeleton condition.
KIND_COLOURS: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "circle": (230, 60, 60),
    "square": (60, 200, 80),
    "triangle": (70, 110, 240),
    "star": (240, 210, 60),
}
#: What :meth:`Scene.condition` can draw.
SCENE_CONDITIONS = ("edges", "segmentation", "depth", "skeleton", "lowres")
_MIN_VISIBLE = 0.6  # a shape hidden more than this is drawn again elsewhere
_LOWRES_FACTOR = 8


@dataclass(frozen=True)
class Shape:
    """One shape. Positions and radius are fractions of the picture's side; ``angle`` is in radians."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    depth: float  # 0 (far) .. 1 (near)
    rgb: tuple[float, float, float]  # the colour as drawn, 0..255


@dataclass(frozen=True)
class Scene:
    """A scene: its shapes from back to front and its background. Every array below is ``size`` x ``size``."""

    shapes: tuple[Shape, ...]
    background: str
    background_colour: str
    background_rgb: tuple[float, float, float]
    texture: tuple[float, float, float]  # angle (radians), period (fraction of the side), amplitude (0..255)

    def alphas(self, size: int) -> list[FloatArray]:
        """Coverage (0..1) of each shape alone, back to front."""
        return [_coverage(shape, size) for shape in self.shapes]

    def image(self, size: int = 64) -> ByteArray:
        """The picture, uint8 (size, size, 3)."""
        canvas = self._background(size)
        for shape, alpha in zip(self.shapes, self.alphas(size), strict=True):
            canvas = canvas * (1 - alpha[..., None]) + np.asarray(shape.rgb, np.float32) * alpha[..., None]
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    def instances(self, size: int = 64) -> IntArray:
        """Index of the visible shape per pixel: 0 is the background, ``i + 1`` is ``shapes[i]``."""
        labels = np.zeros((size, size), np.int64)
        for i, alpha in enumerate(self.alphas(size)):
            labels[alpha >= 0.5] = i + 1
        return labels

    def condition(self, name: str, size: int = 64) -> ByteArray:
        """The exact condition picture ``name`` (one of :data:`SCENE_CONDITIONS`), uint8 (size, size, 3).

        Raises:
            LisaError: the name is not a scene condition.
        """
        choose("scene condition", name, SCENE_CONDITIONS)
        return _DRAW[name](self, size)

    def caption(self, doing: Sequence[str] = ()) -> str:
        """The scene in words, nearest shape first; ``doing``: what follows the name of each of ``shapes``."""
        names = [f"a {s.size} {s.colour} {s.kind}" for s in self.shapes]
        if doing:
            names = [f"{name} {what}".strip() for name, what in zip(names, doing, strict=True)]
        words = names[-1]
        for (front, _), (behind, name) in itertools.pairwise(reversed([*zip(self.shapes, names, strict=True)])):
            gap = math.hypot(front.x - behind.x, front.y - behind.y)
            words += f" {'in front of' if gap < front.radius + behind.radius else 'and'} {name}"
        ground = self.background_colour if self.background == "plain" else f"{self.background} {self.background_colour}"
        return f"{words} on a {ground} background"

    def truth(self) -> dict[str, Any]:
        """What an evaluation needs to judge a generated picture: colours as drawn, kinds and depths."""
        return {
            "colours": [list(self.background_rgb), *[list(s.rgb) for s in self.shapes]],
            "kinds": ["background", *[s.kind for s in self.shapes]],
            "depths": [0.0, *[s.depth for s in self.shapes]],
        }

    def _background(self, size: int) -> FloatArray:
        base = np.ones((size, size, 1), np.float32) * np.asarray(self.background_rgb, np.float32)
        angle, period, amplitude = self.texture
        x, y = pixel_grid(size)
        along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
        if self.background == "graded":
            base = base + (2 * amplitude * along)[..., None]
        elif self.background == "textured":
            across = -(x - 0.5) * math.sin(angle) + (y - 0.5) * math.cos(angle)
            wave = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period)
            base = base + (amplitude * wave)[..., None]
        return base


def make_scene(seed: int, index: int) -> Scene:
    """The scene number ``index`` (>= 0) of the stream ``seed``; the same two numbers give the same scene everywhere."""
    rng = np.random.default_rng([seed, index])
    while True:
        scene = _draw_scene(rng)
        if _visible_enough(scene):
            return scene


def label_by_colour(image: ByteArray, colours: list[list[float]]) -> IntArray:
    """Nearest of ``colours`` (0..255 RGB triples) for every pixel of ``image`` (H, W, 3): labels (H, W)."""
    distance = np.linalg.norm(image[:, :, None, :].astype(np.float32) - np.asarray(colours, np.float32), axis=-1)
    return distance.argmin(-1).astype(np.int64)


def outlines(labels: IntArray) -> NDArray[np.bool_]:
    """One-pixel-wide borders of a label map: a pixel that differs from its right or lower neighbour."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1, :] |= labels[:-1, :] != labels[1:, :]
    return edge


def _draw_scene(rng: np.random.Generator) -> Scene:
    names = list(COLOURS)
    count = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.4, 0.2, 0.1]))
    colours = [names[i] for i in rng.permutation(len(names))[: count + 1]]
    shapes = []
    for i in range(count):
        size = str(rng.choice(list(SIZES) if count < 3 else ["small", "medium"]))
        radius = float(rng.uniform(*SIZES[size]))
        x, y = rng.uniform(0.85 * radius, 1 - 0.85 * radius, 2)
        rgb = np.asarray(COLOURS[colours[i]], float) + rng.uniform(-8, 8, 3)
        shapes.append(
            Shape(
                kind=str(rng.choice(KINDS)),
                colour=colours[i],
                size=size,
                x=float(x),
                y=float(y),
                radius=radius,
                angle=float(rng.uniform(0, 2 * math.pi)),
                depth=float((i + rng.uniform(0.3, 0.9)) / count * 0.65 + 0.3),
                rgb=tuple(float(v) for v in np.clip(rgb, 0, 255)),  # type: ignore[arg-type]
            )
        )
    background = str(rng.choice(BACKGROUNDS, p=[0.4, 0.3, 0.3]))
    rgb = np.asarray(COLOURS[colours[-1]], float) + rng.uniform(-8, 8, 3)
    amplitude = {"plain": 0.0, "graded": 32.0, "textured": 12.0}[background]
    return Scene(
        shapes=tuple(shapes),
        background=background,
        background_colour=colours[-1],
        background_rgb=tuple(float(v) for v in np.clip(rgb, 0, 255)),  # type: ignore[arg-type]
        texture=(float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.25, 0.5)), amplitude),
    )


def _visible_enough(scene: Scene) -> bool:
    """Every shape keeps most of its area, judged on a coarse raster."""
    labels = scene.instances(32)
    areas = [float((a >= 0.5).sum()) for a in scene.alphas(32)]
    return all((labels == i + 1).sum() >= _MIN_VISIBLE * area > 0 for i, area in enumerate(areas))


def pixel_grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Of every pixel the centre: x (to the right) and y (down), as fractions of the side, each (size, size)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


@lru_cache(maxsize=64)  # picture and conditions of one scene ask for the same
def _coverage(shape: Shape, size: int) -> FloatArray:
    """Antialiased coverage from the signed distance, which is linear over one pixel across a border. Read-only."""
    alpha = np.clip(0.5 - signed_distance(shape, *pixel_grid(size)) * size, 0, 1).astype(np.float32)
    alpha.flags.writeable = False
    return alpha


def signed_distance(shape: Shape, x: FloatArray, y: FloatArray) -> FloatArray:
    """Distance of points from a shape's border, negative inside; all as fractions of the side."""
    dx, dy = x - shape.x, y - shape.y
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    u, v = dx * cos + dy * sin, -dx * sin + dy * cos
    return np.hypot(u, v) - shape.radius * 0.9 if shape.kind == "circle" else _polygon(shape, u, v)


def _vertices(kind: str, radius: float) -> FloatArray:
    points = {"square": 4, "triangle": 3, "star": 10}[kind]
    angles = 2 * np.pi * np.arange(points) / points
    radii = np.full(points, radius)
    if kind == "star":
        radii[1::2] *= 0.45
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1).astype(np.float32)


def _polygon(shape: Shape, u: FloatArray, v: FloatArray) -> FloatArray:
    """Signed distance to a polygon: distance to the nearest edge, negative inside (even-odd rule)."""
    corners = _vertices(shape.kind, shape.radius)
    nearest = np.full(u.shape, np.inf, np.float32)
    inside = np.zeros(u.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(u - ax - along * ex, v - ay - along * ey))
        crosses = (ay > v) != (by > v)
        slope = ex / np.where(abs(ey) < 1e-9, 1e-9, ey)
        inside ^= crosses & (u < (v - ay) * slope + ax)
    return np.where(inside, -nearest, nearest)


def _edges(scene: Scene, size: int) -> ByteArray:
    return np.repeat(outlines(scene.instances(size))[..., None], 3, -1).astype(np.uint8) * 255


def _segmentation(scene: Scene, size: int) -> ByteArray:
    palette = np.asarray([KIND_COLOURS["background"], *[KIND_COLOURS[s.kind] for s in scene.shapes]], np.uint8)
    return palette[scene.instances(size)]


def _depth(scene: Scene, size: int) -> ByteArray:
    depths = np.asarray([0.0, *[s.depth for s in scene.shapes]], np.float32)
    return np.repeat((depths[scene.instances(size)] * 255 + 0.5).astype(np.uint8)[..., None], 3, -1)


def _skeleton(scene: Scene, size: int) -> ByteArray:
    """One stroke per shape, from its centre along its orientation, in the colour of its kind."""
    x, y = pixel_grid(size)
    canvas = np.zeros((size, size, 3), np.float32)
    for shape in scene.shapes:
        ex, ey = shape.radius * 0.8 * math.cos(shape.angle), shape.radius * 0.8 * math.sin(shape.angle)
        along = np.clip(((x - shape.x) * ex + (y - shape.y) * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.hypot(x - shape.x - along * ex, y - shape.y - along * ey)
        alpha = np.clip(1.5 - distance * size, 0, 1)[..., None]
        canvas = canvas * (1 - alpha) + np.asarray(KIND_COLOURS[shape.kind], np.float32) * alpha
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _lowres(scene: Scene, size: int) -> ByteArray:
    """The picture averaged over blocks of 8x8 pixels and shown at full size."""
    small = block_mean(scene.image(size), _LOWRES_FACTOR)
    return np.clip(small.repeat(_LOWRES_FACTOR, 0).repeat(_LOWRES_FACTOR, 1) + 0.5, 0, 255).astype(np.uint8)


_DRAW: dict[str, Callable[[Scene, int], ByteArray]] = {
    "edges": _edges,
    "segmentation": _segmentation,
    "depth": _depth,
    "skeleton": _skeleton,
    "lowres": _lowres,
}
