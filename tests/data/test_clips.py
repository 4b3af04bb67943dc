"""Folders of clips: which frames, in which order, with which condition; and everything that does not fit, by name."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data import conditions
from lisa.data.clips import ClipFolder, Sampling, clip_folder
from lisa.data.prepare import prepare
from lisa.data.samples import HasCaptions, HasWindows, Source, Subset
from lisa.data.sources import check_source, open_source
from lisa.data.video import clip_info, read_frames

ALL = Sampling(4)


def frame(clip, number, part=0, height=24, width=32):
    """A picture that tells which it is."""
    return picture(1000 * clip + 10 * number + part, height, width)


def save_clip(folder, clip, count, part=0, name="frame_{}.png", **size):
    for number in range(count):
        save(frame(clip, number, part, **size), folder / name.format(number))
    return folder


@pytest.fixture
def root(tmp_path):
    """Two clips of twelve frames, whose names sort otherwise than they count, and their conditions."""
    path = tmp_path / "data"
    for clip, key in enumerate(("a", "sub/b")):
        save_clip(path / "clips" / key, clip, 12)
        save_clip(path / "conditions" / key, clip, 12, part=1)
        text = path / "captions" / f"{key}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"caption of {key}\n")
    return path


def numbers(clip, part=0, number=0):
    """Which frames they are."""
    known = {frame(number, i, part).tobytes(): i for i in range(40)}
    return [known[each.tobytes()] for each in np.ascontiguousarray(clip)]


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


# Video files


def write_video(path, frames, rate=12, codec="mpeg4", turned=0):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if turned:
            stream.set_display_rotation(turned)
        for each in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey(number, height=32, width=48):
    return np.full((height, width, 3), 15 * number + 20, np.uint8)


def levels(clip):
    """Which grey frames they are."""
    return [round((float(each.mean()) - 20) / 15) for each in clip]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx-vp9")])
def test_a_video_tells_its_frames_and_their_rate(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"x.{suffix}", [grey(i) for i in range(10)], codec=codec)
    info = clip_info(path)
    assert (info.frames, info.size, info.names) == (10, (32, 48), None) and info.rate == pytest.approx(12, rel=0.01)
    assert levels(read_frames(path, range(10))) == list(range(10))
    assert levels(read_frames(path, [2, 5, 9, 9])) == [2, 5, 9, 9]
    with pytest.raises(LisaError, match=r"x.* ends before its frame 10"):
        read_frames(path, [9, 10])


def test_an_animated_gif_is_a_clip(tmp_path):
    frames = [Image.fromarray(grey(i)) for i in range(6)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    info = clip_info(tmp_path / "x.gif")
    assert (info.frames, info.size) == (6, (32, 48)) and info.rate == pytest.approx(10, rel=0.01)
    assert levels(read_frames(tmp_path / "x.gif", range(6))) == list(range(6))


def test_a_video_is_shown_upright(tmp_path):
    """As telephones write them: turned by 90 degrees anticlockwise, the left side comes to lie below."""
    lying = np.full((32, 48, 3), 20, np.uint8)
    lying[:, :24] = 220
    path = write_video(tmp_path / "x.mp4", [lying] * 3, turned=90)
    assert clip_info(path).size == (48, 32)
    upright = read_frames(path, [1])[0]
    assert upright.shape == (48, 32, 3) and upright[40].mean() > 180 > 60 > upright[8].mean()


def test_videos_in_the_layout_of_folders(root, tmp_path):
    """Beside folders of frames, and with a folder of frames as the condition of a video."""
    write_video(root / "clips" / "v.mp4", [grey(i) for i in range(10)])
    save_clip(root / "conditions" / "v", 5, 10, height=32, width=48)
    (root / "clips" / "v.txt").write_text("grey")
    source = clip_folder(root, Sampling(4))
    assert source.keys == ["a", "sub/b", "v"] and source.captions[2] == "grey"
    sample = source[2]
    assert levels(sample.image) == [3, 4, 5, 6] and sample.rate == 12.0
    assert np.array_equal(sample.condition[0], frame(5, 3, height=32, width=48))
    check_source(source)
    (root / "conditions" / "v" / "frame_9.png").unlink()
    with pytest.raises(LisaError, match="the condition 'v' of 'v' has 9 frames, its clip 10"):
        check_source(clip_folder(root, Sampling(4)), sample_limit=1)


def test_a_damaged_video_and_a_missing_package_are_one_message(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "x.mp4").write_bytes(b"not a video")
    with pytest.raises(LisaError, match=r"x.mp4' is not readable, or damaged"):
        clip_folder(tmp_path, ALL, require_condition=False, default_caption="")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(LisaError, match=r"needs the package 'av'.*lisa-diffusion\[video\]"):
        clip_folder(tmp_path, ALL, require_condition=False, default_caption="")


# Conditions made for clips


def test_videos_become_a_folder_of_clips_with_conditions(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "one.mp4", [grey(i) for i in range(3)])
    write_video(videos / "two.mp4", [picture(3, 32, 48)] * 4, rate=24)
    (videos / "one.txt").write_text("grey")
    report = prepare(videos, "gray", size=24, caption="{name}")
    assert (report.samples, report.made) == (2, 2) and report.out == tmp_path / "videos-gray"
    source = open_source(report.out, sampling=Sampling(3))
    assert source.keys == ["one", "two"] and source.captions == ["grey", "two"] and source.rates == [12.0, 24.0]
    sample = source[1]
    assert sample.image.shape == (3, 24, 24, 3)
    for image, condition in zip(sample.image, sample.condition, strict=True):
        assert np.array_equal(condition, conditions.make("gray", image))
    check_source(source)
    assert prepare(videos, "gray", size=24, caption="{name}").made == 0


def test_all_frames_of_a_clip_are_cropped_alike(tmp_path):
    still = picture(8, 48, 60)
    for number in range(3):
        save(still, tmp_path / "in" / "clips" / "x" / f"{number}.png")
    out = prepare(tmp_path / "in", "lowres", size=16, crops_per_image=3).out
    source = open_source(out, sampling=Sampling(3), default_caption="")
    assert source.keys == [f"x__crop{number:03d}" for number in range(3)]
    for sample in source:
        assert (sample.image == sample.image[0]).all() and (sample.condition == sample.condition[0]).all()
    assert len({sample.image.tobytes() for sample in source}) == 3


def test_an_interrupted_preparation_of_clips_goes_on(root, monkeypatch):
    made, calls = conditions.make, []

    def die_in_the_second_clip(name, image, **options):
        calls.append(name)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return made(name, image, **options)

    monkeypatch.setattr(conditions, "make", die_in_the_second_clip)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, "gray")
    monkeypatch.setattr(conditions, "make", made)
    report = prepare(root, "gray")
    assert (report.made, report.kept) == (1, 1) and prepare(root, "gray").made == 0
    (report.out / "clips" / "a" / "00007.png").unlink()
    assert prepare(root, "gray").made == 1
    assert numbers(clip_folder(report.out, Sampling(12))[0].image) == list(range(12))
    (root / "clips" / "a" / "frame_11.png").unlink()
    with pytest.raises(LisaError, match=r"holds 1 other pictures \(such as '00011.png'\)"):
        prepare(root, "gray")
    prepare(root, "gray", overwrite=True)
    assert clip_folder(report.out, None)[0].image.shape[0] == 11
