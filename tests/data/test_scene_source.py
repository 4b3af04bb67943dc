import hashlib
import itertools

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data import scenes
from lisa.data.samples import HasCaptions, Source, captions_of, iterate
from lisa.data.scenes import KIND_COLOURS, SCENE_CONDITIONS, label_by_colour, make_scene, outlines
from lisa.data.sources import ScenesSource, check_source, open_source


def test_scenes_are_samples_with_exact_truth():
    source = open_source("scenes:edges", scene_options={"seed": 3, "count": 6, "size": 48})
    assert isinstance(source, Source) and isinstance(source, HasCaptions) and len(source) == 6
    sample = source[4]
    scene = make_scene(3, 4)
    assert sample.key == source.keys[4] == "scene-3-0000004"
    assert np.array_equal(sample.image, scene.image(48)) and np.array_equal(
        sample.condition, scene.condition("edges", 48)
    )
    assert np.array_equal(sample.truth["instances"], scene.instances(48))
    assert captions_of(source) == [s.caption for s in iterate(source)]
    assert np.array_equal(source[-1].image, source[5].image)
    with pytest.raises(IndexError):
        source[6]
    assert check_source(source).largest == (48, 48)


def test_ranges_of_one_stream_continue_each_other():
    assert np.array_equal(ScenesSource(seed=1, count=10)[7].image, ScenesSource(seed=1, count=2, start=7)[0].image)
    assert not set(ScenesSource(count=5).keys) & set(ScenesSource(count=5, start=5).keys)


def test_every_setting_that_affects_the_samples_is_in_the_fingerprint():
    base = {"condition": "edges", "seed": 1, "count": 5, "size": 64, "start": 0}
    changes = [{"condition": "depth"}, {"seed": 2}, {"count": 6}, {"size": 32}, {"start": 1}]
    prints = [ScenesSource(**{**base, **change}).fingerprint for change in ({}, *changes)]
    assert len(set(prints)) == 6 and ScenesSource(**base).fingerprint == prints[0]
    edges, depth = ScenesSource("edges"), ScenesSource("depth")
    assert edges.part_fingerprint("image") == depth.part_fingerprint("image")
    assert edges.part_fingerprint("condition") != depth.part_fingerprint("condition")
    assert ScenesSource(size=32).part_fingerprint("image") != ScenesSource(size=64).part_fingerprint("image")
    assert ScenesSource(size=32).part_fingerprint("caption") == ScenesSource(size=64).part_fingerprint("caption")


def test_bad_settings_are_named():
    with pytest.raises(LisaError, match=r"unknown scene condition 'edge' \(did you mean 'edges'\?\)"):
        open_source("scenes:edge")
    with pytest.raises(LisaError, match=r"'scenes' does not say which condition.*Choices: edges"):
        open_source("scenes")
    assert open_source("scenes", require_condition=False)[0].condition is None
    with pytest.raises(LisaError, match="count is 0"):
        ScenesSource(count=0)
    with pytest.raises(LisaError, match="must be a multiple of 8"):
        ScenesSource("lowres", size=36)


@pytest.fixture(params=range(12))
def scene(request):
    return make_scene(11, request.param)


def test_the_conditions_of_a_scene_agree_with_its_instances(scene):
    labels = scene.instances(64)
    assert (scene.condition("edges")[..., 0] > 0).tolist() == outlines(labels).tolist()
    palette = np.asarray([KIND_COLOURS[k] for k in scene.truth()["kinds"]])
    assert np.array_equal(scene.condition("segmentation"), palette[labels])
    assert (
        np.abs(scene.condition("depth")[..., 0] / 255 - np.asarray(scene.truth()["depths"])[labels]).max() <= 0.5 / 255
    )
    blocks = scene.condition("lowres").reshape(8, 8, 8, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    means = scene.image(64).reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert np.abs(blocks[:, 0, :, 0] - means).max() <= 0.51


def test_the_skeleton_holds_a_stroke_of_the_right_colour_through_every_shapes_centre(scene):
    picture = scene.condition("skeleton", 128)
    assert 0 < (picture.any(-1)).mean() < 0.2
    for shape, later in zip(scene.shapes, [scene.shapes[i + 1 :] for i in range(len(scene.shapes))], strict=True):
        row, column = min(127, int(shape.y * 128)), min(127, int(shape.x * 128))
        others = [KIND_COLOURS[s.kind] for s in later]  # a nearer stroke may cross this one
        near = min(np.abs(picture[row, column].astype(int) - c).max() for c in [KIND_COLOURS[shape.kind], *others])
        assert near <= 60


def test_what_is_in_front_hides_what_is_behind():
    for index in range(40):
        scene = make_scene(2, index)
        labels, alphas = scene.instances(64), scene.alphas(64)
        depths = [s.depth for s in scene.shapes]
        assert depths == sorted(depths)
        for i, j in itertools.combinations(range(len(alphas)), 2):
            both = (alphas[i] >= 0.5) & (alphas[j] >= 0.5)
            assert (labels[both] != i + 1).all()


def test_captions_name_every_shape_and_colours_never_repeat():
    relations = set()
    for index in range(150):
        scene = make_scene(5, index)
        caption = scene.caption()
        colours = [s.colour for s in scene.shapes] + [scene.background_colour]
        assert len(set(colours)) == len(colours)
        for shape in scene.shapes:
            assert f"a {shape.size} {shape.colour} {shape.kind}" in caption
        assert caption.endswith(f"{scene.background_colour} background")
        relations |= {word for word in ("in front of", " and ") if word in caption}
    assert len(relations) == 2


def test_labels_can_be_read_back_from_the_picture(scene):
    labels = label_by_colour(scene.image(64), scene.truth()["colours"])
    assert (labels == scene.instances(64)).mean() > 0.95


def test_scenes_are_what_they_were():
    """The embedded model is pretrained on these very pictures. Coarse numbers: sines differ in their last bits."""
    assert make_scene(0, 0).caption() == PINNED_CAPTIONS[0] and make_scene(1, 12345).caption() == PINNED_CAPTIONS[1]
    captions = "\n".join(make_scene(9, index).caption() for index in range(100))
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == PINNED_HASH
    for (seed, index), pinned in PINNED_MEANS.items():
        means = make_scene(seed, index).image(64).reshape(2, 32, 2, 32, 3).mean((1, 3)).reshape(4, 3)
        assert np.abs(means - np.asarray(pinned)).max() < 1


def test_every_condition_has_its_drawing():
    assert tuple(scenes._DRAW) == SCENE_CONDITIONS


PINNED_HASH = "c674d93da0de1b89"
PINNED_CAPTIONS = (
    "a large pink circle in front of a medium blue triangle on a graded yellow background",
    "a small pink star in front of a large yellow square on a white background",
)
PINNED_MEANS = {
    (0, 0): [[250.9, 211.4, 117.7], [247.5, 196.5, 114.0], [219.2, 190.5, 84.2], [200.7, 171.7, 83.3]],
    (1, 12345): [[244.7, 237.7, 212.0], [245.0, 240.8, 239.0], [244.0, 229.4, 142.8], [244.7, 228.1, 219.9]],
    (7, 3): [[245.3, 243.0, 239.1], [207.0, 211.9, 224.3], [236.2, 215.0, 180.2], [200.1, 184.9, 201.2]],
}


def test_several_conditions_are_stacked_in_their_order():
    both = ScenesSource(["lowres", "edges"], seed=3, count=2, size=32)
    parts = [ScenesSource(name, seed=3, count=2, size=32) for name in ("lowres", "edges")]
    assert np.array_equal(both[1].condition, np.concatenate([part[1].condition for part in parts], axis=-1))
    turned = ScenesSource(["edges", "lowres"], seed=3, count=2, size=32)
    prints = {source.part_fingerprint("condition") for source in (both, turned, *parts)}
    assert len(prints) == 4 and both.part_fingerprint("image") == turned.part_fingerprint("image")
    assert ScenesSource(["edges"]).fingerprint == ScenesSource("edges").fingerprint
    assert check_source(both).notes == [] and both.name == "scenes:lowres+edges"
    with pytest.raises(LisaError, match="unknown scene condition 'x'"):
        ScenesSource(["edges", "x"])
