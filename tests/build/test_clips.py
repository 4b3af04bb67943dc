"""Pictures and clips do not mix: what does not go together is one message, before anything is encoded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from clip_folders import save_clip, two_clips

import lisa
import runs
from lisa.build import generation, parts
from lisa.build.checks import check_frames
from lisa.common.errors import LisaError
from lisa.data.sources import MovingScenesSource
from lisa.sample.pictures import Request
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

CLIPS = {"data__source": "moving-scenes", "data__frames": 4}


def config(model, tmp_path, **changes):
    return check_settings(TrainConfig, runs.settings(tmp_path / "run", model, **changes))


def test_pictures_and_clips_go_to_networks_for_them():
    pictures, clips = (
        SimpleNamespace(source="x", video=video, latent_frames=lambda frames: frames) for video in (0, 1)
    )
    check_frames(None, pictures)
    check_frames(8, clips)
    with pytest.raises(LisaError, match=r"'x' makes clips, but data.frames is empty.*data.source=moving-scenes"):
        check_frames(None, clips)
    with pytest.raises(LisaError, match=r"'x' makes pictures, but data.frames is 8.*Leave data.frames empty"):
        check_frames(8, pictures)


def test_a_length_that_the_network_cannot_make_is_its_own_message():
    def latent_frames(frames):
        raise LisaError(f"clips of {frames} frames", "Use 5 or 9 frames")

    with pytest.raises(LisaError, match=r"clips of 8 frames\. Use 5 or 9 frames"):
        check_frames(8, SimpleNamespace(source="x", video=True, latent_frames=latent_frames))


def test_a_pair_is_refused_before_its_side_network_is_made(sd_small, tmp_path, monkeypatch):
    from lisa.mains.stable_diffusion import StableDiffusionMain

    with pytest.raises(LisaError, match=r"makes pictures, but data\.frames is 4"):
        parts.build_pair(config(sd_small, tmp_path, **CLIPS))
    monkeypatch.setattr(StableDiffusionMain, "video", True)
    with pytest.raises(LisaError, match=r"makes clips, but data\.frames is empty"):
        parts.build_pair(config(sd_small, tmp_path))


def test_moving_scenes_are_opened_with_the_settings(sd_small, tmp_path):
    settings = config(sd_small, tmp_path, **CLIPS, data__frame_rate=12.0, data__condition=["depth", "edges"]).data
    data = parts.open_data(settings, seed=3)
    source = data.train.parent
    assert isinstance(source, MovingScenesSource) and (source.frames, source.rate, source.size) == (4, 12.0, 32)
    assert (source.seed, len(source), len(data.held_out)) == (settings.scenes_seed, 16, 4)
    assert data.train[0].condition.shape == (4, 32, 32, 6)
    assert data.transform.windows and not parts.still(data.transform).windows
    assert parts.Still(data.held_out, data.transform)[0].truth is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__source": "moving-scenes"}, "data.source is moving-scenes, but data.frames is empty"),
        ({"data__frames": 4}, "'scenes' gives pictures, clips of 4 frames are asked for"),
        ({**CLIPS, "data__size": [32, 64]}, "moving-scenes are square"),
        ({"data__frame_rate": 8.0}, "frame_rate and short_clips are of clips; set data.frames too"),
        ({"data__short_clips": "repeat"}, "frame_rate and short_clips are of clips"),
        ({"data__frames": 1}, "data.frames: .*greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_go_together(sd_small, tmp_path, changes, message):
    with pytest.raises(LisaError, match=message):
        parts.open_data(config(sd_small, tmp_path, **changes).data, seed=0)


def test_a_pair_of_the_other_kind_is_refused_before_data_and_networks(sd_small, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "open_data", None)
    with pytest.raises(LisaError, match=r"a pair 'sd-controlnet' makes pictures, but data\.frames is 4"):
        lisa.train(runs.settings(tmp_path / "run", sd_small, **CLIPS))
    raw = runs.settings(tmp_path / "run", sd_small)
    raw["model"]["pair"] = "wan-vace"
    with pytest.raises(LisaError, match=r"a pair 'wan-vace' makes clips, but data\.frames is empty"):
        lisa.train(raw)
    assert not (tmp_path / "run").exists()


def test_only_pictures_need_one_size(monkeypatch):
    """Clips are made one by one."""
    checked = []
    monkeypatch.setattr(generation, "check_positions", lambda size, *networks: checked.append(size))
    requests = [Request(f"{n}", "", np.zeros((2, 16 * n, 32, 3), np.uint8), n) for n in (1, 2)]
    generation._check_sizes(requests, SimpleNamespace(video=True, size_multiple=16), [])
    assert checked == [(16, 32), (32, 32)]
    with pytest.raises(LisaError, match="condition '2' is 32x32 pixels, '1' is 32x16"):
        generation._check_sizes(requests, SimpleNamespace(video=False, size_multiple=16), [])
    with pytest.raises(LisaError, match="Both sides must be multiples of 32"):
        generation._check_sizes(requests, SimpleNamespace(video=True, size_multiple=32), [])


def test_captions_are_asked_for_where_they_are_read(sd_small, tmp_path):
    """Stable Video Diffusion reads the first frame, and no text."""
    folder = {"data__source": str(tmp_path), "data__frames": 4}
    assert config(sd_small, tmp_path, **folder, model__pair="svd-controlnet").data.default_caption == ""
    given = config(sd_small, tmp_path, **folder, model__pair="svd-controlnet", data__default_caption="a cat")
    assert given.data.default_caption == "a cat"
    assert config(sd_small, tmp_path, **folder, model__pair="wan-vace").data.default_caption is None


def test_that_only_the_middle_of_longer_clips_is_seen_is_said(sd_small, tmp_path):
    root = two_clips(tmp_path / "data")
    folder = {"data__source": str(root), "data__frames": 3, "data__size": [24, 32], "data__held_out": 2}
    save_clip(root / "clips" / "short", 2, 3)
    save_clip(root / "conditions" / "short", 2, 3, part=1)
    (root / "captions" / "short.txt").write_text("short")
    (note,) = parts.open_data(config(sd_small, tmp_path, **folder).data, seed=0).notes
    assert note.startswith("2 of 3 clips are longer than a sample") and "33% of all frames" in note
    for changes in ({"data__cache": ["text"]}, {"data__frames": 12, "data__short_clips": "repeat"}):
        assert parts.open_data(config(sd_small, tmp_path, **folder | changes).data, seed=0).notes == []
