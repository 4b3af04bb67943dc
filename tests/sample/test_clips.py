"""Contact sheets and animations."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lisa.common.errors import LisaError
from lisa.sample.clips import (
    LARGEST,
    STRIP,
    animation,
    animation_scale,
    contact_sheet,
    save_animation,
    sheet_scale,
    strip,
)
from lisa.sample.grids import grid_layout

generator = np.random.default_rng(0)
COLUMNS = {
    name: [generator.integers(0, 256, (3, 20, 16, 3), dtype=np.uint8) for _ in range(2)] for name in ("left", "right")
}


def test_a_strip_holds_every_frame_in_order():
    clip = COLUMNS["left"][0]
    row = strip(clip)
    assert row.shape == (20, 3 * 16 + 2, 3)
    for number in range(3):
        assert np.array_equal(row[:, 17 * number : 17 * number + 16], clip[number])
    assert (row[:, [16, 33]] == 255).all()


def test_a_contact_sheet_has_a_row_per_clip_and_is_cut_up_as_a_grid_is():
    sheet, layout = np.asarray(contact_sheet(COLUMNS, scale=1)), grid_layout(list(COLUMNS), 1)
    pitch = (sheet.shape[1] + layout["gap"]) // 2
    for column, clips in enumerate(COLUMNS.values()):
        for row, clip in enumerate(clips):
            top, left = layout["head"] + row * (20 + layout["gap"]), column * pitch
            assert np.array_equal(sheet[top : top + 20, left : left + 50], strip(clip))


def test_an_animation_shows_the_same_frame_of_all_clips(tmp_path):
    frames = animation(COLUMNS, scale=1)
    assert len(frames) == 3
    for number, frame in enumerate(frames):
        assert np.array_equal(np.asarray(frame)[12:32, 20:36], COLUMNS["right"][0][number])
        assert np.array_equal(np.asarray(frame)[36:56, :16], COLUMNS["left"][1][number])
    path = save_animation(frames, tmp_path / "deep" / "a.webp", 12.5)
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.info["loop"] == 0
        for number, frame in enumerate(frames):
            image.seek(number)
            image.load()
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(frame)) and image.info["duration"] == 80


def test_animations_as_gif(tmp_path):
    path = save_animation(animation(COLUMNS), tmp_path / "a.gif")
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.info["duration"] in (120, 125, 130) and image.info["loop"] == 0
    with pytest.raises(LisaError, match=r"cannot be written as '\.mp4' \('a\.mp4'\).*\.webp"):
        save_animation(animation(COLUMNS), tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize(("frames", "height", "width"), [(14, 576, 1024), (81, 480, 832), (81, 32, 32)])
def test_clips_of_real_sizes_are_shrunk_to_what_can_be_opened(frames, height, width, tmp_path):
    levels = np.linspace(0, 255, frames).astype(np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3))
    columns = {name: [clip, clip] for name in "abcd"}
    sheet, layout = contact_sheet(columns), grid_layout(list("abcd"), sheet_scale(columns))
    assert LARGEST / 2 < max(sheet.size) <= LARGEST
    across = np.asarray(sheet)[layout["head"] + 2, : sheet.width // 4, 0]
    shown = levels[np.linspace(0, frames - 1, min(frames, STRIP)).round().astype(int)]
    centres = ((np.arange(len(shown)) + 0.5) / len(shown) * len(across)).astype(int)
    assert np.array_equal(across[centres], shown), "the first, the last, and frames between them"
    moving = animation({name: clips[:1] for name, clips in columns.items()})[:2]
    assert max(moving[0].size) <= LARGEST
    path = save_animation(moving, tmp_path / "a.webp")
    with Image.open(path) as image:
        image.load()
        assert image.size == moving[0].size


def test_large_animations_are_compressed(tmp_path):
    noise = generator.integers(0, 256, (2, 600, 900, 3), dtype=np.uint8)
    small, large = animation({"a": [noise]}, scale=1), animation({"a": [noise]}, scale=2)
    sizes = [save_animation(frames, tmp_path / f"{i}.webp").stat().st_size for i, frames in enumerate((small, large))]
    assert small[0].width * 2 == large[0].width and sizes[1] < sizes[0]


def test_small_clips_are_enlarged_and_larger_ones_are_not():
    assert sheet_scale(COLUMNS) == 2
    wide = {"a": [np.zeros((8, 300, 300, 3), np.uint8)]}
    assert sheet_scale(wide) == 1 and animation_scale(wide) == 2
    assert animation(wide)[0].width == 600 and contact_sheet(wide).width == 8 * 301 - 1
