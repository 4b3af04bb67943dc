"""Pages of which a script makes the part between two marks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def filled(page: str, begin: str, made: str, end: str) -> str:
    """The page with ``made`` between the marks; ValueError where it lacks one of them."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin!r} before {end!r}")
    return before + begin + made + end + after


def write(target: Path, parts: Sequence[tuple[str, str, str]]) -> bool:
    """Put each part (mark, text, mark) into its place; with `--check` only say whether all of them are there."""
    page = whole = target.read_text(encoding="utf-8")
    for begin, made, end in parts:
        whole = filled(whole, begin, made, end)
    if "--check" not in sys.argv:
        target.write_text(whole, encoding="utf-8")
        return True
    return whole == page
