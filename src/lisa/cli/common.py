"""What several verbs need."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

import typer

from lisa.common.files import write_json

__all__ = ["interrupted", "print_json", "quiet_libraries", "show_interval", "write_json"]


def quiet_libraries() -> None:
    """Keep the advice that diffusers and transformers print on loading off the terminal; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def print_json(value: Any) -> None:
    """Machine-readable result on standard output, nothing else."""
    typer.echo(json.dumps(value, indent=2))


def show_interval(interval: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """``0.312 [0.287, 0.340]``."""
    if interval is None or interval.get("value") is None:
        return "-"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
    return f"{value:.{digits}f}{ends}"


def interrupted(what: str) -> None:
    """Say how to go on, and exit as an interrupted program does."""
    typer.echo(f"stopped; a checkpoint was written. {what}", err=True)
    raise typer.Exit(128 + signal.SIGINT)
