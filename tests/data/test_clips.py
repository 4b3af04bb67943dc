"""Folders of clips: which frames, in which order, with which condition; and everything that does not fit, by name."""

from __future__ import annotations

import json

import pytest
from clip_folders import numbers, two_clips
from pictures import picture, save

from lisa.common.errors import LisaError
from lisa.data.clips import ClipFolder, Sampling, clip_folder
from lisa.data.samples import HasCaptions, HasWindows, Source, Subset
from lisa.data.sources import check_source, open_source
from lisa.data.video import list_clips

ALL = Sampling(4)


@pytest.fixture
def root(tmp_path):
    return two_clips(tmp_path / "data")


def test_a_sample_is_the_middle_of_its_clip_in_the_order_of_the_numbers(root):
    source = open_source(root, sampling=ALL)
    assert isinstance(source, ClipFolder) and isinstance(source, Source)
    assert isinstance(source, HasCaptions) and isinstance(source, HasWindows)
    assert source.keys == ["a", "sub/b"] and source.captions == ["caption of a", "caption of sub/b"]
    sample = source[1]
    assert sample.image.shape == sample.condition.shape == (4, 24, 32, 3) and sample.key == "sub/b"
    assert numbers(sample.image, number=1) == numbers(sample.condition, 1, 1) == [4, 5, 6, 7]
    assert (sample.rate, sample.motion, sample.caption) == (None, None, "caption of sub/b")
    assert source.spare(0) == 8
    assert [numbers(source.window(0, start).image)[0] for start in range(9)] == list(range(9))
    assert numbers(source.window(0, 8).condition, 1) == [8, 9, 10, 11]
    report = check_source(source)
    assert (report.samples, report.smallest, report.notes) == (2, (24, 32), [])
    part = Subset(source, [1])
    assert part.spare(0) == 8 and numbers(part.window(0, 2).image, number=1)[0] == 2


def test_rates_and_motions_come_from_metadata(root):
    rows = [
        {"file_name": "clips/a", "text": "words", "frame_rate": 24, "motion_bucket_id": 40},
        {"file_name": "clips/sub/b", "fps": 30.0, "condition": "conditions/a", "motion": 200},
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = clip_folder(root, ALL)
    assert [(s.rate, s.motion, s.caption) for s in source] == [(24.0, 40.0, "words"), (30.0, 200.0, "caption of sub/b")]
    assert numbers(source[1].condition, 1, 0) == [4, 5, 6, 7], "the metadata file names another condition"
    slower = clip_folder(root, Sampling(3, 8.0))
    assert numbers(slower.window(0, 0).image) == [0, 3, 6] and slower[0].rate == 8.0
    assert slower.spare(0) == 12 - 7 and numbers(slower.window(1, 0).image, number=1) == [0, 4, 8]
    for wrong in ("x", -1, 0, float("inf")):
        (root / "metadata.jsonl").write_text(json.dumps({"file_name": "clips/a", "fps": wrong}))
        with pytest.raises(LisaError, match=r"has the fps .*It must be a number above 0"):
            clip_folder(root, ALL)


def test_rates_that_are_not_known_or_too_low_are_errors(root):
    with pytest.raises(LisaError, match=r"2 clips of unknown frame rate \('a', 'sub/b'\), 8 frames per second"):
        clip_folder(root, Sampling(3, 8.0))
    rows = [{"file_name": f"clips/{key}", "fps": 29.97} for key in ("a", "sub/b")]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert numbers(clip_folder(root, Sampling(4, 30.0)).window(0, 0).image) == [0, 1, 2, 3], "near enough"
    with pytest.raises(LisaError, match=r"fewer than 48 frames per second: 'a \(29.97\)'"):
        clip_folder(root, Sampling(3, 48.0))


def test_clips_that_are_too_short_are_errors_or_repeat_their_last_frame(root):
    (root / "clips" / "a" / "frame_11.png").unlink()
    (root / "conditions" / "a" / "frame_11.png").unlink()
    message = r"1 clips that are too short \('a'\): 'a' has 11 frames, 12 are needed.*short_clips=repeat"
    with pytest.raises(LisaError, match=message):
        clip_folder(root, Sampling(12))
    source = clip_folder(root, Sampling(14, short="repeat"))
    assert numbers(source[0].image) == numbers(source[0].condition, 1) == [*range(11), 10, 10, 10]
    assert source.spare(0) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (c / "frame_7.png").unlink(), "condition 'b' of 'sub/b' has 11 frames, its clip 12"),
        (
            lambda c: (c / "frame_7.png").rename(c / "frame_12.png"),
            "has a frame 'frame_12', its clip none of that name",
        ),
        (lambda c: save(picture(1, 24, 40), c / "frame_0.png"), "is 40x24 pixels, its clip 32x24"),
    ],
)
def test_a_condition_that_is_not_of_this_clip_frame_by_frame_is_named(root, change, message):
    change(root / "conditions" / "sub" / "b")
    source = clip_folder(root, ALL)
    with pytest.raises(LisaError, match=message):
        check_source(source, sample_limit=1)
    with pytest.raises(LisaError, match=message):
        _ = source[1]
    assert source[0].key == "a"


def test_a_damaged_frame_is_named_wherever_it_lies(root):
    path = root / "clips" / "sub" / "b" / "frame_11.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(LisaError, match=r"b/frame_11.png' is truncated or damaged"):
        check_source(clip_folder(root, ALL), sample_limit=1)


def test_frames_of_several_sizes_are_named(root):
    save(picture(1, 24, 40), root / "clips" / "a" / "frame_5.png")
    with pytest.raises(LisaError, match=r"the frames of '.*a' are 32x24 and 40x24 pixels"):
        _ = clip_folder(root, ALL)[0]


def test_frames_of_several_sizes_are_named_wherever_they_lie(root):
    source = clip_folder(root, ALL)
    for file in (root / "conditions" / "a" / "frame_11.png", root / "clips" / "a" / "frame_11.png"):
        save(picture(1, 24, 40), file)
        with pytest.raises(LisaError, match=rf"the frames of '{file.parent}' are 32x24 and 40x24 pixels"):
            check_source(source, sample_limit=1)


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(LisaError, match=r"holds clips\. Say how many frames"):
        open_source(root)
    with pytest.raises(LisaError, match=r"no folder '.*dat' \(did you mean 'data'\?\)"):
        open_source(root.parent / "dat", sampling=ALL)
    save(picture(), tmp_path / "pictures" / "images" / "x.png")
    for spec in (tmp_path / "pictures", "scenes:edges", "hub:owner/name"):
        with pytest.raises(LisaError, match="gives pictures, clips of 4 frames are asked for"):
            open_source(spec, sampling=ALL)
    save(picture(), root / "clips" / "stray.png")
    with pytest.raises(LisaError, match=r"holds pictures beside the clips \(such as 'stray.png'\)"):
        open_source(root, sampling=ALL)
    (root / "clips" / "stray.png").unlink()
    (root / "captions" / "a.txt").unlink()
    with pytest.raises(LisaError, match=r"1 clip of 2 without a caption \('a'\)"):
        open_source(root, sampling=ALL)
    with pytest.raises(LisaError, match="has no folder 'clips'"):
        clip_folder(tmp_path / "pictures", ALL)


def test_animations_of_generated_clips_are_no_frames(tmp_path):
    for key in ("a", "deep/b", "deep/c.v2"):
        save(picture(), tmp_path / key / "0000.png")
        save(picture(), tmp_path / f"{key}.webp")
    assert list_clips(tmp_path) == [tmp_path / "a", tmp_path / "deep" / "b", tmp_path / "deep" / "c.v2"]
    save(picture(), tmp_path / "alone.webp")
    with pytest.raises(LisaError, match=r"beside the clips \(such as 'alone.webp'\)"):
        list_clips(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((1,), "frames is 1"),
        ((4, 0.0), "frame rate is 0.0"),
        ((4, None, "loop"), "unknown way with short clips 'loop'"),
    ],
)
def test_bad_sampling_is_named(options, message):
    with pytest.raises(LisaError, match=message):
        Sampling(*options)


def test_fingerprints_follow_content_and_sampling(root):
    def prints(sampling=ALL):
        return [clip_folder(root, sampling).part_fingerprint(part) for part in ("image", "condition", "caption")]

    base = prints()
    assert prints() == base
    image, condition, caption = prints(Sampling(5))
    assert image != base[0] and condition != base[1] and caption == base[2]
    save(picture(7), root / "conditions" / "a" / "frame_0.png")
    assert [now == then for now, then in zip(prints(), base, strict=True)] == [True, False, True]
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "clips/a", "motion": 3}))
    assert prints()[0] != base[0], "what the first frame is encoded with"


def test_pictures_and_tables_are_read_as_ever_where_clips_might_be_meant(tmp_path):
    """With a video beside a table, and with a subfolder of photographs that happens to be called clips."""
    import datasets

    save(picture(), tmp_path / "table" / "x.png")
    row = {"image": str(tmp_path / "table" / "x.png"), "text": "x"}
    columns = {"image": datasets.Image(), "text": datasets.Value("string")}
    table = datasets.Dataset.from_list([row], features=datasets.Features(columns))
    (tmp_path / "parquet" / "assets").mkdir(parents=True)
    table.to_parquet(tmp_path / "parquet" / "x.parquet")
    (tmp_path / "parquet" / "assets" / "demo.gif").write_bytes(b"GIF89a")
    options = {"cache_dir": tmp_path / "cache"}
    source = open_source(tmp_path / "parquet", require_condition=False, default_caption="", table_options=options)
    assert len(source) == 1 and source[0].image.shape == (24, 32, 3)
    for name in ("plain/b", "plain/clips/a", "plain/clips/deep/c", "alone/clips/a"):
        save(picture(), tmp_path / f"{name}.png")
    opened = {
        name: open_source(tmp_path / name, require_condition=False, default_caption="") for name in ("plain", "alone")
    }
    assert opened["plain"].keys == ["b", "clips/a", "clips/deep/c"] and opened["alone"].keys == ["clips/a"]


def test_clips_alone_are_never_taken_for_pictures(root):
    for needed in (True, False):
        with pytest.raises(LisaError, match=r"holds clips\. Say how many frames"):
            open_source(root, require_condition=needed, default_caption="")


def test_a_clip_in_a_folder_named_like_another_is_an_error(tmp_path):
    for name in ("walk.mp4", "walk/deep/take2.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(LisaError, match=r"a clip named 'walk' and in a folder of that name another, 'walk/deep/take2'"):
        clip_folder(tmp_path, ALL, require_condition=False, default_caption="")


def test_a_frame_that_is_there_twice_is_named(root):
    save(picture(), root / "clips" / "a" / "frame_5.jpg")
    with pytest.raises(LisaError, match=r"clips/a' holds several frames named 'frame_5'"):
        clip_folder(root, ALL)
