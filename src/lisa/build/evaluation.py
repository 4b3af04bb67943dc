"""``lisa evaluate``: generated pictures against the data they were made for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lisa.build import parts
from lisa.build.chosen import read_run
from lisa.common.errors import LisaError, choose
from lisa.data.samples import Source
from lisa.data.sources import check_source, open_source
from lisa.evaluate import protocols
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
        run: judge against the held-out samples of this run, cropped as they were in training.
        data: or against all samples of this source.
        condition: with ``data``, what the conditions are; with a ``run`` on several stacked conditions, which of them.
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
        source: Source = parts.Still(opened.held_out, opened.transform)
        name, target = _one_of(config.data.conditions, condition), None
    else:
        if condition is None:
            raise LisaError("--data needs --condition", "Say what the conditions are, for example --condition canny")
        protocols.find(condition, exact=data == "scenes")  # before every picture is read
        source = open_source(f"scenes:{condition}" if data == "scenes" else str(data), default_caption="")
        check_source(source)
        name, target = condition, None if size is None else (size, size)
    indices = range(len(source) if count is None else min(count, len(source)))
    return evaluate_folder(generated, source, name, indices=indices, size=target)


def _one_of(conditions: Sequence[str], chosen: str | None) -> str:
    """The condition of a run to judge by."""
    if chosen is not None:
        return choose("condition of the run", chosen, conditions)
    if len(conditions) > 1:
        raise LisaError("the run has several conditions", "Choose one with --condition", conditions)
    return conditions[0]
