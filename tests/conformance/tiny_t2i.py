"""T2I-Adapters beside Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from conformance import tiny_sd, tiny_sdxl
from conformance.row import Row


def row(pair: str, prediction: str, folder: Callable[[Path], Path], cell: int) -> Row:
    """Adapters see the condition only, cut into squares of pixels."""

    def unshuffle(side: Any) -> Any:
        return side.adapter.unshuffle

    return Row(pair, prediction, folder, unshuffle, planted_in="condition", cell=cell, free_depth=False, shares=0)


ROWS = [
    row("sd-t2i-adapter", "epsilon", partial(tiny_sd.make_folder, prediction="epsilon", v2=False), 1),
    row("sd-t2i-adapter", "v_prediction", partial(tiny_sd.make_folder, prediction="v_prediction", v2=True), 1),
    row("sdxl-t2i-adapter", "epsilon", partial(tiny_sdxl.make_folder, prediction="epsilon"), 2),
    row("sdxl-t2i-adapter", "v_prediction", partial(tiny_sdxl.make_folder, prediction="v_prediction"), 2),
]
