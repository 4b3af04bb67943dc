"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import tiny
from conformance.row import Row


def make_folder(path: Path, prediction: str, v2: bool) -> Path:
    return tiny.make_folder(path, prediction, v2=v2)


ROWS = [
    Row("sd-controlnet", "epsilon", partial(make_folder, prediction="epsilon", v2=False)),
    Row("sd-controlnet", "v_prediction", partial(make_folder, prediction="v_prediction", v2=True)),
]
