"""The published protocols, by truths worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data.samples import Sample
from lisa.data.transforms import PairedTransform
from lisa.evaluate import published
from lisa.evaluate.deviations import deviations
from lisa.evaluate.extractors.depth import levels_by_maximum, normalised
from lisa.evaluate.extractors.pose import People
from lisa.evaluate.labels import read_label_maps
from lisa.evaluate.metrics import edge_f1, miou, ms_ssim, pose_pck
from lisa.evaluate.pooled import pooled, ratio, single


def sample(image, key="a"):
    return Sample(key, np.asarray(image, np.uint8), None, "")


def grey(values, key="a"):
    return sample(np.repeat(np.asarray(values)[..., None], 3, -1), key)


def person(left, top, *, size=(30, 40), joints=((0.5, 0.1), (0.2, 0.5), (0.8, 0.5), (0.5, 0.9)), seen=None):
    """(box, joints, seen) of a person whose joints lie at shares of its box."""
    box = np.asarray([left, top, left + size[0], top + size[1]], float)
    places = box[:2] + np.asarray(joints) * np.asarray(size)
    return box, places, np.ones(len(joints), bool) if seen is None else np.asarray(seen)


def people(*persons):
    if not persons:
        return People(np.zeros((0, 4)), np.zeros((0, 0, 2)), np.zeros((0, 0), bool))
    return People(*(np.stack(column) for column in zip(*persons, strict=True)))


def moved(one, *offsets):
    box, joints, seen = one
    return box, joints + np.asarray(offsets), seen


def test_pck_counts_joints_within_a_fifth_of_the_diagonal():
    """The diagonal of a box of 30 x 40 is 50: 10 pixels are within, more are not."""
    truth = person(10, 10)
    assert pose_pck.counts(people(truth), people(truth)) == (4, 4)
    assert pose_pck.counts(people(truth), people(moved(truth, (10, 0), (6, 8), (10.01, 0), (0, -10)))) == (3, 4)
    made = (truth[0] + [0, 0, 300, 300], *moved(truth, *[(10.01, 0)] * 4)[1:])
    assert pose_pck.counts(people(truth), people(made)) == (0, 4), "the true box decides, not the other"


def test_pck_matches_persons_by_the_overlap_of_their_boxes():
    """The greedy choice for the first would leave the second alone; the sum of overlaps decides. Order is nothing."""
    one, two = person(10, 10), person(60, 10)
    assert pose_pck.counts(people(one, two), people(two, one)) == (8, 8)
    assert pose_pck.counts(people(one, two), people(two)) == (4, 8), "a person who is missing loses all joints"
    assert pose_pck.counts(people(one), people(two, one, two)) == (4, 4), "further persons cost nothing"
    elsewhere = (person(500, 500)[0], *one[1:])
    assert pose_pck.counts(people(one), people(elsewhere)) == (0, 4), "no overlap is no match, wherever its joints are"
    half_seen = (*one[:2], np.asarray([True, True, False, False]))
    assert pose_pck.counts(people(half_seen), people(one)) == (2, 2), "joints not seen in the truth are not asked for"
    assert pose_pck.counts(people(one), people(half_seen)) == (2, 4), "joints not seen in what was made are missed"
    assert pose_pck.counts(people(), people(one)) == (0, 0) and pose_pck.counts(people(one), people()) == (0, 4)
    boxes = np.asarray([[0, 0, 10, 10], [5, 0, 15, 10]], float)
    np.testing.assert_allclose(pose_pck.box_iou(boxes, boxes), [[1, 1 / 3], [1 / 3, 1]])
    a, b = person(0, 0, size=(10, 10)), person(4, 0, size=(10, 10))
    shifted = [person(3, 0, size=(10, 10)), person(-4, 0, size=(10, 10))]
    assert pose_pck.counts(people(a, b), people(*shifted)) == (4, 8)
    with pytest.raises(LisaError, match="the truth has 4 joints, what was made 2"):
        pose_pck.counts(people(one), People(one[0][None], one[1][None, :2], one[2][None, :2]))


def test_a_set_pools_its_counts():
    """Unlike the mean of the pictures' own figures; and what asks for nothing counts for nothing."""
    counts = [single(1, 1), single(0, 3), single(0, 0)]
    assert pooled(counts).value == 0.25 and np.mean([ratio(c) for c in counts[:2]]) == 0.5
    assert np.isnan(ratio(counts[2]))
    same = pooled([single(1, 2)] * 5)
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    spread = pooled([single(float(i % 2)) for i in range(40)])
    assert spread.low < 0.42 < spread.value == 0.5 < 0.58 < spread.high, "1.96 * 0.5 / sqrt(40) is 0.155"
    assert spread.low == pytest.approx(0.345, abs=0.04)


def test_miou_of_a_set_by_hand():
    truth, made = np.asarray([[0, 0, 1, 255]]), np.asarray([[0, 1, 1, 2]])
    above, below = miou.counts(truth, made, 3, 255)
    assert above.tolist() == [1, 1, 0] and below.tolist() == [2, 2, 0], "void pixels do not count, made 2 or not"
    other = miou.counts(np.asarray([[2, 2, 2, 2]]), np.asarray([[2, 2, 2, 0]]), 3, 255)
    # over both: class 0 1/3, class 1 1/2, class 2 3/4
    assert pooled([(above, below), other]).value == pytest.approx((1 / 3 + 1 / 2 + 3 / 4) / 3)
    beyond = miou.counts(np.asarray([[0, 0]]), np.asarray([[0, 7]]), 3, 255)
    assert beyond[0].tolist() == [1, 0, 0] and beyond[1].tolist() == [2, 0, 0]


def test_exact_f1_has_no_tolerance():
    line, beside = np.eye(9, dtype=bool), np.eye(9, k=1, dtype=bool)
    assert edge_f1.exact(line, line) == 1 and edge_f1.exact(line, beside) == 0 and edge_f1.score(line, beside) == 1
    assert edge_f1.exact(line, line | beside) == pytest.approx(2 * 9 / (9 + 17))
    assert edge_f1.exact(line & False, line & False) == 0 and edge_f1.exact(line & False, line) == 0


def test_ms_ssim_orders_pictures_and_says_what_is_too_small():
    truth = np.random.default_rng(0).random((176, 176))
    noise = np.random.default_rng(1).normal(0, 1, truth.shape)
    values = [ms_ssim.score(truth, np.clip(truth + s * noise, 0, 1)) for s in (0, 0.05, 0.3)]
    assert values[0] == pytest.approx(1) and values[0] > values[1] > values[2]
    flat = ms_ssim.score(np.full((176, 176), 0.5), np.full((176, 176), 0.25))
    # Of flat pictures only the luminance differs, which counts at the coarsest scale, with the weight 0.1333 there.
    assert flat == pytest.approx(((2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)) ** 0.1333, abs=1e-4)
    with pytest.raises(LisaError, match=r"161 pixels at least, the pictures are \(160, 200\)"):
        ms_ssim.score(np.zeros((160, 200)), np.zeros((160, 200)))


def ramp(levels=256):
    return np.tile(np.arange(levels), (4, 1))


class Luminance:
    """Reads the first channel as depth."""

    def raw(self, image):
        return image[..., 0].astype(np.float64)

    def __call__(self, image):
        return normalised(self.raw(image))


by_luminance = Luminance()


@pytest.mark.parametrize(
    ("family", "metric", "span"), [("lisa", "depth_rmse", 1), ("controlnet++", "depth_rmse_255", 255)]
)
def test_depth_is_normalised_and_fidelity_is_higher_for_better(family, metric, span):
    protocol = published.find(family, "depth")
    truth = grey(ramp(), "a")
    darker = (truth.image // 2).astype(np.uint8)  # another scale: the same depth, but for rounding
    same = published.evaluate(protocol, by_luminance, [[truth.image]], [truth])
    assert same["metrics"][metric]["value"] == 0 and same["fidelity"]["value"] == 1
    near = published.evaluate(protocol, by_luminance, [[darker]], [truth])
    assert near["metrics"][metric]["value"] < 0.01 * span
    turned = published.evaluate(protocol, by_luminance, [[truth.image[:, ::-1]]], [truth])
    expected = np.sqrt(np.mean((np.arange(256) - np.arange(255, -1, -1)) ** 2)) * span / 255
    assert turned["metrics"][metric]["value"] == pytest.approx(expected)
    assert turned["fidelity"]["value"] == pytest.approx(1 - expected / span)
    assert turned["protocol"] == f"{family}/depth" and not turned["metrics"][metric]["higher_is_better"]
    both = published.evaluate(protocol, by_luminance, [[truth.image, truth.image[:, ::-1]]], [truth, grey(ramp(), "b")])
    assert both["fidelity"]["low"] < both["fidelity"]["value"] < both["fidelity"]["high"], "ends turn with the sign"


class Segments:
    """Reads the class off the first channel."""

    classes = 3

    def __call__(self, image):
        return image[..., 0].astype(np.int64)


def test_depth_that_begins_elsewhere_is_the_same_in_one_protocol_only():
    """Published for ControlNet++: the truth is min-max normalised, what was made divided by its greatest value."""
    truth, shifted = grey(ramp()), grey(ramp() // 2 + 100).image
    paper = published.evaluate(published.find("lisa", "depth"), by_luminance, [[shifted]], [truth])
    assert paper["metrics"]["depth_rmse"]["value"] < 0.01
    theirs = published.evaluate(published.find("controlnet++", "depth"), by_luminance, [[shifted]], [truth])
    expected = np.sqrt(np.mean((np.floor((ramp() // 2 + 100) / 227 * 255) - ramp()) ** 2))
    assert theirs["metrics"]["depth_rmse_255"]["value"] == pytest.approx(expected) and expected > 50
    low = np.asarray([[-2.0, 0.0], [1.0, 4.0]])
    assert levels_by_maximum(low, (2, 2)).tolist() == [[0, 0], [63, 255]], "whole levels, not the nearest"
    assert not levels_by_maximum(np.zeros((2, 2)), (3, 5)).any() and levels_by_maximum(low, (3, 5)).shape == (3, 5)


def test_segmentation_is_judged_by_the_real_picture_or_by_the_labels():
    truth, made = grey([[0, 0, 1, 1]]), np.asarray(grey([[0, 0, 0, 1]]).image)
    expected = (2 / 3 + 1 / 2) / 2
    lisa = published.evaluate(published.find("lisa", "segmentation"), Segments(), [[made]], [truth])
    assert lisa["fidelity"]["value"] == pytest.approx(expected) and lisa["metrics"]["miou"]["higher_is_better"]
    labels = [np.asarray([[0, 0, 255, 2]])]
    theirs = published.evaluate(published.find("controlnet++", "segmentation"), Segments(), [[made]], [truth], labels)
    assert theirs["fidelity"]["value"] == pytest.approx((1 + 0 + 0) / 3), "class 1 was made where there is none of it"


def test_poses_of_pictures_and_nothing_to_judge():
    by_key = {0: people(person(10, 10)), 1: people(moved(person(10, 10), *[(11, 0)] * 4)), 2: people()}

    def reader(image):
        return by_key[int(image[0, 0, 0])]

    pictures = [grey(np.full((8, 8), number), str(number)) for number in by_key]
    protocol = published.find("lisa", "pose")
    result = published.evaluate(
        protocol,
        reader,
        [[pictures[i].image for i in (0, 1, 2)]],
        [pictures[0], *[grey(np.full((8, 8), 0), "b"), pictures[2]]],
    )
    assert result["fidelity"]["value"] == 0.5 and result["per_image"]["2"]["pck@0.2"] is None
    with pytest.raises(LisaError, match="lisa/pose found nothing to judge in 1 true pictures"):
        published.evaluate(protocol, reader, [[pictures[0].image]], [pictures[2]])


def test_photographs_by_the_protocols_without_networks():
    from lisa.data.images import load_rgb
    from lisa.data.photos import sample_photos

    fit = PairedTransform((176, 176))
    photos = [
        Sample(name, fit.fit(load_rgb(path), 0, "lanczos"), None, "")
        for name, path in list(sample_photos().items())[:2]
    ]
    for family, condition in (("controlnet++", "canny"), ("controlnet++", "hed"), ("lisa", "lowres")):
        protocol = published.find(family, condition)
        assert published.load_reader(protocol) is None
        same = published.evaluate(protocol, None, [[p.image for p in photos]], photos)
        other = published.evaluate(protocol, None, [[p.image for p in photos[::-1]]], photos)
        best = 60 if condition == "lowres" else 1
        assert same["fidelity"]["value"] == pytest.approx(best) and other["fidelity"]["value"] < 0.6 * best
        assert same["protocol"] == f"{family}/{condition}" and same["extractors"] == []


def test_what_is_not_as_published_is_said():
    protocol, big = published.find("controlnet++", "depth"), grey(np.zeros((512, 512)))
    mine = [{"source": "mine", "revision": "x"}]
    published_weights = [{"source": "Intel/dpt-large", "revision": "x"}]
    reread = "true depth read off the true picture (published: the data set's own depth map)"
    always = [
        "sampled with a scheduler that is not told (published: UniPCMultistepScheduler)",
        "no negative prompt (published: 'worst quality, low quality')",
        "one picture per condition (published: 4)",
    ]
    assert deviations(protocol, [big], {"steps": 20, "guidance": 7.5}, published_weights) == [reread, *always]
    found = deviations(protocol, [grey(np.zeros((64, 96)))], {"steps": 9, "guidance": 7.5}, mine)
    assert found == [
        reread,
        "extractor mine (instead of Intel/dpt-large)",
        "pictures of 96x64 pixels (published: 512x512)",
        "steps 9 (published: 20)",
        *always,
    ]
    followed = {"scheduler": "UniPCMultistepScheduler", "negative_prompt": "worst quality, low quality"}
    assert deviations(protocol, [big], {"steps": 20, "guidance": 7.5, **followed}, published_weights) == [
        reread,
        always[-1],
    ]
    told = deviations(protocol, [big], {**followed, "negative_prompt": "bad"}, [])
    assert "the negative prompt 'bad' (published: 'worst quality, low quality')" in told
    other = deviations(protocol, [big], {**followed, "scheduler": "FlowMatchEulerDiscreteScheduler"}, [])
    assert "sampled with FlowMatchEulerDiscreteScheduler (published: UniPCMultistepScheduler)" in other
    unknown = deviations(protocol, [big], None, published_weights)[1]
    assert "not known" in unknown and "the negative prompt 'worst quality, low quality'" in unknown
    for each in published.FAMILIES["controlnet++"].values():
        assert set(always) <= set(deviations(each, [big], {}, []))
    assert deviations(published.find("lisa", "depth"), [big], None, []) == []
    poses = published.find("lisa", "pose")
    both = [{"source": source, "revision": "x"} for source in ("mine", "my detector")]
    assert deviations(poses, [big], None, both) == [
        "joints by ViTPose (published: OpenPose)",
        "extractor mine (instead of usyd-community/vitpose-base-simple)",
        "detector my detector (instead of PekingU/rtdetr_r50vd_coco_o365)",
    ], "beside what always differs"
    as_published = [{"source": source, "revision": "x"} for source in poses.weights]
    assert deviations(poses, [big], None, as_published) == list(poses.differs)


def test_bad_calls_are_named():
    with pytest.raises(LisaError, match=r"unknown protocol 'controlnet' .*did you mean 'controlnet\+\+'"):
        published.find("controlnet", "depth")
    with pytest.raises(LisaError, match=r"unknown condition of the protocol lisa 'canny'.*Choices: pose"):
        published.find("lisa", "canny")
    canny, one = published.find("controlnet++", "canny"), grey(np.zeros((8, 8)))
    with pytest.raises(LisaError, match=r"controlnet\+\+/canny uses no extractor; 'x' was given"):
        published.load_reader(canny, "x")
    with pytest.raises(LisaError, match="lisa/depth uses no detector"):
        published.load_reader(published.find("lisa", "depth"), None, "x")
    with pytest.raises(LisaError, match="1 pictures for 2 samples"):
        published.evaluate(canny, None, [[one.image]], [one, one])
    with pytest.raises(LisaError, match="two samples have the same key"):
        published.evaluate(canny, None, [[one.image] * 2], [one, one])
    with pytest.raises(LisaError, match=r"made for 'a' is \(4, 4, 3\), its truth \(8, 8, 3\)"):
        published.evaluate(canny, None, [[one.image[:4, :4]]], [one])


def test_label_maps_are_read_cropped_and_refused(tmp_path):
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(labels).save(tmp_path / "a.png")
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(list(labels.ravel()))
    palette.save(tmp_path / "b.png")
    plain = {"start": 0, "classes": 24}
    maps = read_label_maps(tmp_path, ["a", "b"], **plain)
    assert np.array_equal(maps[0], labels) and np.array_equal(maps[1], labels)
    cropped = read_label_maps(tmp_path, ["a"], PairedTransform((4, 4)), **plain)[0]
    assert np.array_equal(cropped, labels[:, 1:5]), "the centre, as the pictures"
    shrunk = read_label_maps(tmp_path, ["a"], PairedTransform((2, 3)), **plain)[0]
    assert set(shrunk.ravel()) <= set(labels.ravel()) and shrunk.shape == (2, 3), "numbers are not mixed"
    with pytest.raises(LisaError, match=r"lacks 2 of 3 label maps \('c.png' ...\)"):
        read_label_maps(tmp_path, ["a", "c", "d"], **plain)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(LisaError, match=r"c.png' is of mode RGB, not numbers of classes"):
        read_label_maps(tmp_path, ["c"], **plain)
    (tmp_path / "d.png").write_bytes(b"half")
    with pytest.raises(LisaError, match=r"d.png' cannot be read"):
        read_label_maps(tmp_path, ["d"], **plain)


def test_classes_of_label_maps_begin_where_they_are_said_to(tmp_path):
    """Raw ADE20K: 0 is none, 1 .. 150 are the classes 0 .. 149; nothing beyond them is taken for none."""
    Image.fromarray(np.asarray([[0, 1, 150, 255]], np.uint8)).save(tmp_path / "a.png")
    start = published.find("controlnet++", "segmentation").labels_start
    assert read_label_maps(tmp_path, ["a"], start=start, classes=150)[0].tolist() == [[255, 0, 149, 255]]
    assert read_label_maps(tmp_path, ["a"], start=0, classes=151)[0].tolist() == [[0, 1, 150, 255]]
    with pytest.raises(LisaError, match=r"a.png' holds 150, but 150 classes from 0 on end at 149.*--labels-start"):
        read_label_maps(tmp_path, ["a"], start=0, classes=150)
    with pytest.raises(LisaError, match=r"holds 150, but 149 classes from 1 on end at 149.*--extractor"):
        read_label_maps(tmp_path, ["a"], start=1, classes=149)
