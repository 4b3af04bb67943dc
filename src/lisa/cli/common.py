"""What several verbs need."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer


def quiet_libraries() -> None:
    """Keep the advice that diffusers and transformers print on loading off the terminal; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # accelerate warns at every checkpoint that a T5's tied embedding is stored once; it is tied again on loading.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def print_json(value: Any) -> None:
    """Machine-readable result on standard output, nothing else."""
    typer.echo(json.dumps(value, indent=2))


def say(line: str) -> None:
    """Progress and remarks: standard error, so that standard output holds results alone."""
    typer.echo(line, err=True)


def is_main_process() -> bool:
    """Whether this process speaks: under ``accelerate launch`` and ``torchrun`` only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def split_arguments(config: str | None, overrides: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """(configuration file, overrides): the file may be left out, and its path may hold a ``=``."""
    rest = list(overrides or [])
    if config is not None and "=" in config and not Path(config).is_file():
        return None, [config, *rest]
    return config, rest


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``512`` or ``576,1024``, as ``data.size`` has them.

    Raises:
        LisaError: it is neither, or below 16 pixels.
    """
    from lisa.common.errors import LisaError

    if text is None:
        return None
    parts = text.strip("[]() ").split(",")
    try:
        sides = [int(part) for part in parts]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 16:
        raise LisaError(
            f"--size is {text!r}", "Give the side of a square, such as 512, or height,width, such as 576,1024 (from 16)"
        )
    return sides[0], sides[-1]


def show_interval(interval: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """``0.312 [0.287, 0.340]``."""
    if interval is None or interval.get("value") is None:
        return "-"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
    return f"{value:.{digits}f}{ends}"


def interrupted(what: str) -> NoReturn:
    """Say how to go on, and exit as an interrupted program does."""
    if is_main_process():
        say(f"stopped; a checkpoint was written. {what}")
    raise typer.Exit(128 + signal.SIGINT)
