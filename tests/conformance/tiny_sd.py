"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import tiny
from conformance.row import Row


def make_folder(path: Path, prediction: str, v2: bool) -> Path:
    return tiny.make_folder(path, prediction, v2=v2)


def conv_in(side: Any) -> Any:
    """The first convolution of a ControlNet, which sees one cell around."""
    return side.conv_in


ROWS = [
    Row(
        "sd-controlnet",
        prediction,
        partial(make_folder, prediction=prediction, v2=v2),
        conv_in,
        cell=1,
        reach=1,
        free_depth=False,
        shares=5,
    )
    for prediction, v2 in (("epsilon", False), ("v_prediction", True))
]
