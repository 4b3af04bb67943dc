"""Errors a user can act on: what was given, what there is, what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class LisaError(Exception):
    """A problem with what the user gave. The command line prints it without a traceback and exits with code 2.

    Args:
        problem: what is wrong, naming the value.
        remedy: what to do about it.
        choices: what would be accepted, where that is a short list.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "", choices: Iterable[str] = ()) -> None:
        self.problem = problem
        self.remedy = remedy
        self.choices = tuple(choices)
        parts = [problem.rstrip(".") + "."]
        if self.choices:
            parts.append(f"Choices: {', '.join(self.choices)}.")
        if remedy:
            parts.append(remedy.rstrip(".") + ".")
        super().__init__(" ".join(parts))


class TrainingStopped(LisaError):
    """Training cannot go on, but what it had is saved."""

    exit_code = 3


def need(module: str, extra: str) -> Any:
    """Import an optional package (or a module of one).

    Raises:
        LisaError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LisaError(
            f"this needs the package {module.split('.')[0]!r}, which is not installed ({error})",
            f"Install it with: pip install 'lisa-diffusion[{extra}]'",
        ) from None


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint ("did you mean ...?") for a name that is close to a choice, or the empty string."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else ""


def choose(what: str, name: str, choices: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``choices``.

    Raises:
        LisaError: it is not; the message names the value, the choices and the nearest one.
    """
    options = list(choices)
    if name not in options:
        hint = nearest(name, options)
        raise LisaError(f"unknown {what} {name!r}" + (f" ({hint})" if hint else ""), choices=options)
    return name
