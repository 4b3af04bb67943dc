"""Pages of which a script makes the part between two marks."""

from __future__ import annotations

import sys
from pathlib import Path


def write(target: Path, begin: str, made: str, end: str) -> None:
    """Put ``made`` between the marks; with `--check` only say, by the exit status, whether it is there."""
    page = target.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    whole = before + begin + made + end + rest.partition(end)[2]
    if "--check" in sys.argv:
        sys.exit(whole != page)
    target.write_text(whole, encoding="utf-8")
