"""Moving scenes: every frame is a still scene, and the motion from one to the next is known for every pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from lisa.common.errors import LisaError
from lisa.data.moving import Motion, MovingScene, make_moving_scene
from lisa.data.scenes import (
    COLOURS,
    SCENE_CONDITIONS,
    Scene,
    Shape,
    label_by_colour,
    make_scene,
    outlines,
    signed_distance,
)
from lisa.data.sources import MovingScenesSource, Sampling, ScenesSource, check_source, open_source

SIZE = 64
CLIP = (8, 8.0, SIZE)


@pytest.fixture(params=range(6))
def moving(request):
    return make_moving_scene(5, request.param)


def shape(kind="square", x=0.5, y=0.5, angle=0.3, radius=0.2, colour="red", depth=0.5):
    return Shape(kind, colour, "medium", x, y, radius, angle, depth, tuple(float(v) for v in COLOURS[colour]))


def scene(*pairs):
    """A moving scene on plain blue of (shape, motion), back to front."""
    blue = tuple(float(v) for v in COLOURS["blue"])
    shapes, motions = zip(*pairs, strict=True)
    return MovingScene(Scene(shapes, "plain", "blue", blue, (0.0, 0.3, 0.0)), motions)


def test_two_numbers_make_the_same_clip_and_the_first_frame_is_the_still_scene(moving):
    again = make_moving_scene(5, 2)
    assert np.array_equal(again.clip(*CLIP), make_moving_scene(5, 2).clip(*CLIP))
    assert again.start == make_scene(5, 2) and again.at(0) == again.start
    assert not np.array_equal(again.clip(*CLIP), make_moving_scene(6, 2).clip(*CLIP))
    assert any(any(motion.velocity) for motion in moving.motions), "something moves"
    assert not np.array_equal(moving.clip(*CLIP)[0], moving.clip(*CLIP)[-1])


@pytest.mark.parametrize("name", SCENE_CONDITIONS)
def test_every_frame_has_the_condition_of_its_still_scene(moving, name):
    drawn, labels = moving.condition(name, *CLIP), moving.instances(*CLIP)
    assert drawn.shape == (8, SIZE, SIZE, 3) and drawn.dtype == np.uint8
    for number, frame in enumerate(drawn):
        still = moving.at(number / 8)
        assert np.array_equal(frame, still.condition(name, SIZE))
        assert np.array_equal(labels[number], still.instances(SIZE))
        if name == "edges":
            assert np.array_equal(frame[..., 0] > 0, outlines(labels[number]))
    read = label_by_colour(moving.clip(*CLIP)[5], moving.start.truth()["colours"])
    assert (read == labels[5]).mean() > 0.95


def test_who_leaves_goes_straight_and_who_bounces_stays_inside():
    leaving = Motion((0.4, -0.3), 1.0, bounces=False).move(shape(x=0.5, y=0.4), 2.0)
    assert (leaving.x, leaving.y, leaving.angle) == pytest.approx((1.3, -0.2, 2.3))
    bouncing = Motion((0.5, 0.0), 0.0, bounces=True)
    wall = 1 - 0.85 * 0.2
    for time in np.linspace(0, 9, 50):  # unfolded: there and back is two spans
        span = 1 - 2 * 0.85 * 0.2
        along = (0.5 - 0.85 * 0.2 + 0.5 * time) % (2 * span)
        expected = 0.85 * 0.2 + (along if along <= span else 2 * span - along)
        moved = bouncing.move(shape(), time)
        assert moved.x == pytest.approx(expected) and moved.y == pytest.approx(0.5) and moved.x <= wall + 1e-9
    assert bouncing.move(shape(), (wall - 0.5) / 0.5 + 0.1).x == pytest.approx(wall - 0.05), "on the way back"


def test_twice_the_rate_shows_the_same_motion_more_finely(moving):
    assert np.array_equal(moving.clip(15, 16.0)[::2], moving.clip(8, 8.0))


@pytest.mark.parametrize("border", [0.0, 1.0])
def test_every_pixel_goes_where_its_shape_carries_it(moving, border):
    """Against the definition: a point keeps its place in its shape's own coordinates; on top there, it is seen."""
    before, after = 0.25, 0.5
    flow, labels = moving.flow(before, after, SIZE, border), moving.at(before).instances(SIZE)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    start = np.stack([columns + 0.5, rows + 0.5], -1) / SIZE
    goal = start + flow.displacement / SIZE
    assert not flow.displacement[labels == 0].any()
    old, new = moving.at(before).shapes, moving.at(after).shapes
    for number, (one, two) in enumerate(zip(old, new, strict=True), start=1):
        here = labels == number
        assert np.abs(_own(one, start[here]) - _own(two, goal[here])).max(initial=0) < 1e-5
    on_top, certain = np.zeros_like(labels), np.ones(labels.shape, bool)
    for number, each in enumerate(new, start=1):
        distance = signed_distance(each, goal[..., 0], goal[..., 1]) * SIZE
        on_top[distance <= 0] = number
        certain &= np.abs(np.abs(distance) - border) > 1e-2
    inside = ((goal * SIZE >= 0.5) & (goal * SIZE <= SIZE - 0.5)).all(-1)
    really = (on_top == labels) & inside
    if border:  # fewer, and only such as are seen
        assert not (flow.visible & ~really & certain).any() and flow.visible.sum() > 0.5 * really.sum()
    else:
        assert np.array_equal(flow.visible[certain], really[certain]) and certain.mean() > 0.98


def _own(shape, points):
    """Points in a shape's own coordinates."""
    offset = points - np.asarray([shape.x, shape.y])
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    return np.stack([offset[:, 0] * cos + offset[:, 1] * sin, -offset[:, 0] * sin + offset[:, 1] * cos], -1)


def warped(frame, displacement):
    """``frame`` looked up (bilinearly) where the pixels of the frame before it have gone."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(float)
    places = [rows + displacement[..., 1], columns + displacement[..., 0]]
    return np.stack(
        [map_coordinates(frame[..., c].astype(float), places, order=1, mode="nearest") for c in range(3)], -1
    )


def test_warping_by_the_motion_gives_the_frame_before(moving):
    """Exactly where no border is near; nearly so nearer to one; and not at all if the motion is left out."""
    clip, unmoved = moving.clip(*CLIP), []
    for one, other in ((0, 1), (4, 5), (0, 3), (2, 5)):
        far, near = (moving.flow(one / 8, other / 8, SIZE, border) for border in (2.0, 1.0))
        off = np.abs(warped(clip[other], far.displacement) - clip[one])
        assert off[far.visible].max() < 1e-2 and off[near.visible].mean() < 0.5
        unmoved.append(np.abs(clip[other].astype(float) - clip[one])[far.visible].max())
    assert max(unmoved) > 20


def test_what_is_passed_in_front_of_is_not_visible_in_both():
    still, passing = Motion((0.0, 0.0), 0.0, True), Motion((0.4, 0.0), 0.0, False)
    clip = scene((shape("circle", 0.5, 0.5, colour="green"), still), (shape("square", 0.2, 0.5, colour="red"), passing))
    flow = clip.flow(0.0, 0.5, SIZE, border=0.0)
    labels = clip.at(0.0).instances(SIZE)
    covered = labels[32, 30]
    assert covered == 1 and clip.at(0.5).instances(SIZE)[32, 30] == 2, "the square has moved over the circle's middle"
    assert not flow.visible[32, 30] and flow.visible[32, 8] and flow.visible[32, 42]
    assert flow.displacement[32, 8] == pytest.approx([0.4 * 0.5 * SIZE, 0.0], abs=1e-4)
    gone = scene((shape("square", 0.9, 0.5), Motion((0.5, 0.0), 0.0, False))).flow(0.0, 0.5, SIZE)
    assert not gone.visible[32, 57], "it has left the picture"


@pytest.mark.parametrize(
    ("velocity", "spin", "words"),
    [
        ((0.3, 0.0), 0.0, "moving right"),
        ((-0.3, 0.05), 0.0, "moving left"),
        ((0.0, -0.3), 1.0, "moving up while turning"),
        ((0.2, 0.2), 0.0, "moving down and right"),
        ((0.0, 0.0), -1.0, "turning"),
        ((0.0, 0.0), 0.0, ""),
    ],
)
def test_captions_say_what_shapes_set_out_to_do(velocity, spin, words):
    assert Motion(velocity, spin, True).words() == words
    clip = scene((shape(), Motion(velocity, spin, True)))
    assert clip.caption() == f"a medium red square{' ' if words else ''}{words} on a blue background"


def test_scenes_are_what_they_were():
    """Embedded models are pretrained on these very clips."""
    assert make_moving_scene(0, 0).caption() == PINNED_CAPTION
    means = make_moving_scene(0, 0).clip(*CLIP)[7].reshape(2, 32, 2, 32, 3).mean((1, 3)).reshape(4, 3)
    assert np.abs(means - np.asarray(PINNED_MEANS)).max() < 1


PINNED_CAPTION = (
    "a large pink circle in front of a medium blue triangle moving down and right while turning "
    "on a graded yellow background"
)
PINNED_MEANS = [[250.9, 211.4, 117.7], [247.5, 196.5, 114.0], [236.7, 202.8, 68.5], [198.3, 169.9, 84.8]]


def test_the_source_gives_clips_with_conditions_and_exact_truth():
    source = open_source("moving-scenes:depth", sampling=Sampling(5, 10.0), scene_options={"size": 32, "count": 3})
    assert isinstance(source, MovingScenesSource) and (source.frames, source.rate) == (5, 10.0)
    assert source.name == "moving-scenes:depth" and source.keys[1] == "moving-scene-0-0000001"
    sample, clip = source[1], make_moving_scene(0, 1)
    assert (sample.key, sample.rate, sample.motion) == (source.keys[1], 10.0, None)
    assert np.array_equal(sample.image, clip.clip(5, 10.0, 32))
    assert np.array_equal(sample.condition, clip.condition("depth", 5, 10.0, 32))
    assert sample.caption == clip.caption() == source.captions[1]
    truth = sample.truth
    assert set(truth) == {"colours", "kinds", "depths", "instances", "flow", "visible"} and len(truth) == 6
    assert np.array_equal(truth["instances"], clip.instances(5, 10.0, 32))
    assert truth["flow"].shape == (4, 32, 32, 2) and truth["visible"].shape == (4, 32, 32)
    expected = clip.flow(0.2, 0.3, 32)
    assert np.allclose(truth["flow"][2], expected.displacement, atol=1e-4)
    assert (truth["visible"][2] == expected.visible).mean() > 0.99
    assert check_source(source).smallest == (32, 32)


def test_fingerprints_follow_what_affects_their_part():
    def prints(**changes):
        source = MovingScenesSource("edges", **{"count": 4, "size": 32, **changes})
        return [source.part_fingerprint(part) for part in ("image", "condition", "caption")]

    base = prints()
    for changes in ({"frames": 9}, {"rate": 4.0}, {"size": 40}):
        image, condition, caption = prints(**changes)
        assert image != base[0] and condition != base[1] and caption == base[2]
    assert prints(seed=1)[2] != base[2]
    still = ScenesSource("edges", count=4, size=32)
    assert still.part_fingerprint("image") not in base and still.fingerprint != MovingScenesSource("edges").fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "edgs"}, "unknown scene condition 'edgs'"),
        ({"frames": 1}, "moving-scenes: frames is 1"),
        ({"rate": 0.0}, "moving-scenes: rate is 0.0"),
        ({"size": 8}, "moving-scenes: size is 8"),
        ({"condition": "lowres", "size": 36}, "for 'lowres' it must be a multiple of 8"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(LisaError, match=message):
        MovingScenesSource(**options)


def test_a_source_without_a_condition_is_told():
    with pytest.raises(LisaError, match="'moving-scenes' does not say which condition"):
        open_source("moving-scenes")
