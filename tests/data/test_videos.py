"""Videos as clips, and the conditions that ``lisa prepare`` makes for clips."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from clip_folders import frame, numbers, save_clip, two_clips
from pictures import picture, save
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data import conditions
from lisa.data.clips import Sampling, clip_folder
from lisa.data.prepare import prepare
from lisa.data.sources import check_source, open_source
from lisa.data.video import clip_info, iter_frames, read_frames
from videos import write_video

ALL = Sampling(4)


@pytest.fixture
def root(tmp_path):
    return two_clips(tmp_path / "data")


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


def test_what_is_transparent_in_an_animation_shows_the_backdrop(tmp_path):
    frames = []
    for number in range(3):
        rgba = np.dstack([grey(number), np.full((32, 48), 255, np.uint8)])
        rgba[:, 24:, 3] = 0
        frames.append(Image.fromarray(rgba))
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    for options, shown in (((), 255), (((9, 8, 7),), [9, 8, 7])):
        clip = read_frames(tmp_path / "x.gif", range(3), *options)
        assert levels(clip[:, :, :24]) == [0, 1, 2] and (clip[:, :, 24:] == shown).all()


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


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_video_whose_end_is_missing_is_truncated(tmp_path, kept):
    """With its tables in front, as videos for the web have them, the rest of it can be read."""
    path = write_video(tmp_path / "x.mp4", [picture(i, 32, 48) for i in range(10)], movflags="faststart")
    assert clip_info(path).frames == 10
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(LisaError, match=r"the video '.*x.mp4' is truncated"):
        clip_info(path)


def test_frames_that_an_edit_list_leaves_out_are_not_missing(tmp_path):
    path = write_video(tmp_path / "x.mp4", [grey(i) for i in range(10)])
    whole = bytearray(path.read_bytes())
    at = whole.index(b"elst") + 12  # the first edit's length, in thousandths of a second
    whole[at : at + 4] = (250).to_bytes(4, "big")
    path.write_bytes(whole)
    assert clip_info(path).frames == 3 and levels(read_frames(path, range(3))) == [0, 1, 2]


def cut(video, path, first):
    """The packets of a video from ``first`` on, as they are."""
    import av

    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][first:]
        start = packets[0].dts
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            target.mux(packet)
    return path


def test_a_video_that_was_cut_between_key_frames_is_named_before_anything_is_made(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", [picture(i, 32, 48) for i in range(40)], codec="libx264")
    (tmp_path / "videos").mkdir()
    path = cut(whole, tmp_path / "videos" / "x.mp4", 3)
    info = clip_info(path)
    assert info.frames == 37 > len(list(iter_frames(path)))
    with pytest.raises(LisaError, match=r"x.mp4' tells of 37 frames, \d+ can be decoded.*encode it anew"):
        check_source(clip_folder(tmp_path / "videos", ALL, require_condition=False, default_caption=""))
    with pytest.raises(LisaError, match="can be decoded"):
        prepare(tmp_path / "videos", "gray")
    assert not (tmp_path / "videos-gray").exists()


def test_of_many_videos_as_many_are_decoded_as_told(tmp_path, monkeypatch):
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", [grey(i) for i in range(3)])
    decoded = []
    monkeypatch.setattr("lisa.data.clips.check_clip", lambda file, info: decoded.append(file.stem))
    source = clip_folder(tmp_path, Sampling(2), require_condition=False, default_caption="")
    report = check_source(source, 2, require_condition=False)
    assert report.checked == 2 and decoded == ["0", "2"]
    check_source(source, None, require_condition=False)
    assert decoded[2:] == ["0", "1", "2", "3"]


def test_what_is_decoded_whole_is_hardly_read_again(tmp_path, monkeypatch):
    for number in range(6):
        write_video(tmp_path / f"{number}.mp4", [grey(i) for i in range(3)])
    source, read = clip_folder(tmp_path, Sampling(2), require_condition=False, default_caption=""), []
    window = type(source).window
    monkeypatch.setattr(type(source), "window", lambda self, i, start: read.append(i) or window(self, i, start))
    monkeypatch.setattr("lisa.data.sources._CLIPS_READ", 3)
    assert check_source(source, require_condition=False).checked == 6 and read == [0, 2, 4]


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
