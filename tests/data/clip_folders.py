"""Folders of clips, every frame of which tells which it is."""

from __future__ import annotations

import numpy as np
from pictures import picture, save


def frame(clip, number, part=0, height=24, width=32):
    """A picture that tells which it is."""
    return picture(1000 * clip + 10 * number + part, height, width)


def save_clip(folder, clip, count, part=0, name="frame_{}.png", **size):
    for number in range(count):
        save(frame(clip, number, part, **size), folder / name.format(number))
    return folder


def two_clips(path):
    """Two clips of twelve frames, whose names sort otherwise than they count, and their conditions."""
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
