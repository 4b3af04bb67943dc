import dataclasses

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data.samples import Sample
from lisa.data.sources import ScenesSource
from lisa.data.transforms import PairedTransform


def coordinates(height, width):
    """Every pixel says where it is: red its column, green its row, blue the corner they cannot tell apart."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns % 256, rows % 256, rows // 256 * 16 + columns // 256], -1).astype(np.uint8)


def decode(picture):
    values = picture.astype(int)
    return values[..., 1] + 256 * (values[..., 2] // 16), values[..., 0] + 256 * (values[..., 2] % 16)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("flip", [False, True])
def test_image_and_condition_get_the_same_crop_and_flip_pixel_by_pixel(crop, flip):
    """The shorter side fits already, so nothing is resampled: every pixel still says where it came from."""
    image = coordinates(40, 333)
    condition = 255 - image
    transform = PairedTransform((40, 48), crop, flip, seed=5)
    seen = set()
    for index in range(30):
        for step in range(3):
            a, b = transform(image, condition, index, step)
            assert a.shape == b.shape == (40, 48, 3)
            assert np.array_equal(b, 255 - a)
            rows, columns = decode(a)
            assert np.array_equal(rows, np.repeat(np.arange(40)[:, None], 48, 1))
            left, mirrored = columns.min(), columns[0, 0] > columns[0, -1]
            expected = np.arange(left, left + 48)[:: -1 if mirrored else 1]
            assert np.array_equal(columns, np.repeat(expected[None], 40, 0))
            assert mirrored == transform.flips(index, step)
            seen.add((left, bool(mirrored)))
    lefts = {left for left, _ in seen}
    assert lefts == {142} if crop == "center" else (len(lefts) > 20 and min(lefts) < 40 and max(lefts) > 240)
    assert {m for _, m in seen} == ({False, True} if flip else {False})


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (150, 90)])
@pytest.mark.parametrize("resample", ["lanczos", "nearest", "box", "auto"])
def test_image_and_condition_stay_aligned_when_resized(size, resample):
    """A smooth ramp of coordinates: after any resampling a pixel still shows its place, within half a source pixel."""
    rows, columns = np.mgrid[:120, :180]
    ramp = np.stack([columns, rows, rows * 0], -1).astype(np.uint8)
    transform = PairedTransform(size, "random", True, seed=2, condition_resample=resample)
    for index in range(12):
        a, b = transform(ramp, ramp.copy(), index)
        if resample in ("lanczos", "auto"):
            assert np.array_equal(a, b)
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(a[inner].astype(int) - b[inner].astype(int)).max() <= max(1, 0.5 * 120 / size[0] + 1)


def test_the_crop_depends_on_the_sample_alone_and_the_flip_also_on_the_step():
    transform = PairedTransform((40, 48), "random", True, seed=1)
    image = coordinates(40, 333)
    lefts = {min(decode(transform(image, None, 3, step)[0])[1].ravel()) for step in range(20)}
    assert len(lefts) == 1
    flips = [transform.flips(3, step) for step in range(2000)]
    assert 0.45 < np.mean(flips) < 0.55
    assert 0.45 < np.mean([transform.flips(i) for i in range(2000)]) < 0.55
    again = PairedTransform((40, 48), "random", True, seed=1)
    assert np.array_equal(transform(image, None, 9, 4)[0], again(image, None, 9, 4)[0])
    other = PairedTransform((40, 48), "random", False, seed=2)
    assert any(not np.array_equal(other(image, None, i)[0], again.fit(image, i, "lanczos")) for i in range(5))


def test_labels_stay_pure_and_thin_lines_do_not_vanish():
    labels = np.zeros((96, 96, 3), np.uint8)
    labels[:, 32:64], labels[:, 64:] = (200, 0, 0), (0, 200, 0)
    _, small = PairedTransform((32, 32))(labels, labels, 0)
    assert {tuple(c) for c in small.reshape(-1, 3).tolist()} == {(0, 0, 0), (200, 0, 0), (0, 200, 0)}
    line = np.zeros((96, 96, 3), np.uint8)
    line[:, 0::7] = 255
    _, small = PairedTransform((24, 24))(line, line, 0)
    assert (small[0, :, 0] > 0).mean() > 0.5
    assert abs(small.mean() - line.mean()) < 2


def test_sizes_that_do_not_divide_and_pictures_smaller_than_the_target():
    for height, width in ((33, 57), (7, 200), (500, 3)):
        image, condition = PairedTransform((30, 42))(coordinates(height, width), coordinates(height, width), 0)
        assert image.shape == condition.shape == (30, 42, 3)


def test_pictures_of_the_right_size_are_untouched():
    image = coordinates(32, 48)
    assert np.array_equal(PairedTransform((32, 48), "random", seed=3)(image, image, 5)[0], image)


def test_a_samples_exact_truth_is_dropped_when_its_pixels_move():
    sample = ScenesSource("edges", count=4)[0]
    assert PairedTransform((64, 64)).sample(sample, 0).truth is sample.truth
    assert PairedTransform((32, 32)).sample(sample, 0).truth is None
    flipping = PairedTransform((64, 64), flip=True)
    steps = [flipping.sample(sample, 0, step) for step in range(10)]
    assert {s.truth is None for s in steps} == {flipping.flips(0, step) for step in range(10)} == {True, False}
    bare = dataclasses.replace(sample, condition=None)
    assert isinstance(bare, Sample) and PairedTransform((32, 32)).sample(bare, 0).condition is None


def test_the_fingerprint_holds_what_a_cached_latent_depends_on():
    base = PairedTransform((32, 32))
    assert base.fingerprint == PairedTransform((32, 32), flip=True, seed=9).fingerprint
    assert base.fingerprint != PairedTransform((32, 40)).fingerprint
    random = PairedTransform((32, 32), "random")
    assert len({base.fingerprint, random.fingerprint, PairedTransform((32, 32), "random", seed=1).fingerprint}) == 3


def test_bad_arguments_are_named():
    with pytest.raises(LisaError, match="unknown crop 'middle'"):
        PairedTransform((8, 8), "middle")
    with pytest.raises(LisaError, match="condition_resample"):
        PairedTransform((8, 8), condition_resample="cubic")
    with pytest.raises(LisaError, match="size is"):
        PairedTransform((0, 8))
    with pytest.raises(LisaError, match="image is 8x8 pixels, its condition 9x8"):
        PairedTransform((8, 8))(coordinates(8, 8), coordinates(8, 9), 0)


def test_stacked_conditions_move_with_the_image_and_keep_their_own_kind():
    """A label map among them stays pure while the picture beside it is smoothed; all get one crop and flip."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    labels = np.zeros_like(image)
    labels[:, 30:50] = (10, 200, 30)
    labels[20:, :30] = (90, 0, 0)
    transform = PairedTransform((32, 32), crop="random", flip=True, seed=4)
    stacked = np.concatenate([labels, image], axis=-1)
    for step in range(4):
        moved, both = transform(image, stacked, 3, step)
        assert both.shape == (32, 32, 6) and np.array_equal(both[..., 3:], moved)
        assert np.array_equal(both[..., :3], transform(image, labels, 3, step)[1])
        assert {tuple(colour) for colour in both[..., :3].reshape(-1, 3)} <= {(0, 0, 0), (10, 200, 30), (90, 0, 0)}


def test_all_frames_of_a_clip_and_of_its_condition_get_one_crop_and_flip():
    """Pixel by pixel: each frame is what it would be alone; and a label map among the frames' colours stays one."""
    rng = np.random.default_rng(1)
    clip = rng.integers(0, 255, (5, 40, 60, 3), dtype=np.uint8)
    labels = np.zeros_like(clip)
    labels[0, :, 32:] = (9, 200, 30)
    labels[1:, 22:, :32] = (90, 0, 7)  # two colours in every frame, three in the clip
    transform = PairedTransform((32, 32), crop="random", flip=True, seed=4)
    seen = set()
    for step in range(6):
        seen.add(transform.flips(3, step))
        image, stacked = transform(clip, np.concatenate([labels, clip], -1), 3, step)
        assert image.shape == (5, 32, 32, 3) and stacked.shape == (5, 32, 32, 6)
        assert np.array_equal(image, stacked[..., 3:])
        for number in range(5):
            assert np.array_equal(image[number], transform(clip[number], None, 3, step)[0])
        assert {tuple(c) for c in stacked[..., :3].reshape(-1, 3)} <= {(0, 0, 0), (9, 200, 30), (90, 0, 7)}
    assert seen == {True, False}
    with pytest.raises(LisaError, match="image is 5 frames of 60x40 pixels, its condition 4 frames of 60x40 pixels"):
        transform(clip, clip[:4], 0)


def test_windows_are_the_middle_or_spread_evenly_over_the_visits():
    assert [PairedTransform((8, 8)).start(1, step, 9) for step in range(3)] == [4, 4, 4]
    transform = PairedTransform((8, 8), seed=3, windows=True)
    starts = [transform.start(5, step, 9) for step in range(40)]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10 and counts.min() >= 3 and counts.max() <= 5, "four each, but for one"
    assert starts == [transform.start(5, step, 9) for step in range(40)]
    assert starts[:5] != [transform.start(6, step, 9) for step in range(5)], "keyed by the sample"
    assert starts[:5] != [PairedTransform((8, 8), seed=4, windows=True).start(5, step, 9) for step in range(5)]
    assert {transform.start(5, step, 0) for step in range(9)} == {0}


def test_the_filter_of_a_clip_is_that_of_all_its_frames():
    """A third colour in one frame: no frame may get colours that stand for nothing."""
    clip = np.zeros((3, 12, 12, 3), np.uint8)
    clip[:, ::2, ::3] = 255
    clip[2, 3:7, 3:7] = (255, 0, 0)
    _, small = PairedTransform((8, 8))(clip, clip, 0)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3)} <= {(0, 0, 0), (255, 255, 255), (255, 0, 0)}
    _, small = PairedTransform((8, 8))(clip[:2], clip[:2], 0)
    assert len(np.unique(small)) > 2, "of two colours the share of each is kept"


def test_colours_are_counted_only_where_something_is_resized(monkeypatch):
    clip = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    monkeypatch.setattr("lisa.data.transforms._resample_for", None)
    _, cropped = PairedTransform((8, 8))(clip, clip, 0)
    assert np.array_equal(cropped, clip[:, :, 2:10])
