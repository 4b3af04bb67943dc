"""``lisa evaluate``: generated pictures against the data they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lisa.build import parts
from lisa.build.generation import read_run
from lisa.common.errors import LisaError
from lisa.data.sources import check_source, open_source
from lisa.evaluate.runner import evaluate_folder


def evaluate(
    generated: str | Path,
    *,
    run: str | Path | None = None,
    data: str | None = None,
    condition: str | None = None,
    size: int | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """Judge a folder of generated pictures; see :func:`lisa.evaluate.runner.evaluate_folder`.

    Args:
        generated: the folder.
        run: judge against the held-out samples of this run.
        data: or against all samples of this source.
        condition: with ``data``, what the conditions are.
        size: with ``data``, the side of the pictures in pixels.
        count: only the first so many samples.

    Raises:
        LisaError: neither or both of ``run`` and ``data``, a missing picture, or a condition that no protocol judges.
    """
    if (run is None) == (data is None):
        raise LisaError(
            "lisa evaluate needs one of --run and --data", "Name the run, or the data the pictures belong to"
        )
    if run is not None:
        config = read_run(Path(run))
        opened = parts.open_data(config.data, config.seed, check=False)
        held_out, name = opened.held_out, config.data.condition
        target = None if config.data.source == "scenes" else config.data.height_width
    else:
        if condition is None:
            raise LisaError("--data needs --condition", "Say what the conditions are, for example --condition canny")
        spec = f"scenes:{condition}" if data == "scenes" else str(data)
        held_out, name = open_source(spec, default_caption=""), condition
        check_source(held_out)
        target = None if size is None else (size, size)
    indices = range(len(held_out) if count is None else min(count, len(held_out)))
    return evaluate_folder(generated, held_out, name, indices=indices, size=target)
