"""Collecting checks, and the precisions that they run in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conformance.row import Row
from lisa.pairs import Pair

Check = Callable[[Row, Path], None]
#: name -> check; those that depend on the precision are there once for each.
CHECKS: dict[str, Check] = {}


def promised(check: Any) -> Any:
    """Collect a check."""
    CHECKS[check.__name__] = check
    return check


def promised_in_each_precision(check: Any) -> Any:
    """Collect a check that also takes a precision: ``fp32``, or ``bf16`` as a training in it runs."""
    for precision in ("fp32", "bf16"):
        CHECKS[f"{check.__name__}_{precision}"] = partial(check, precision=precision)
    return check


def in_precision(pair: Pair, precision: str) -> AbstractContextManager[Any]:
    """The context that a training runs in; the frozen network is then stored in that precision."""
    if precision == "fp32":
        return nullcontext()
    pair.main.to(torch.device("cpu"), torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16)
