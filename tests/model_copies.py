"""Copies of model folders with something wrong, and what is said about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lisa.common.errors import LisaError


def edited(folder: Path, copied: Path, file: str = "model_index.json", **changes: Any) -> Path:
    """A copy of a model folder with changes in one of its JSON files."""
    shutil.copytree(folder, copied)
    content = json.loads((copied / file).read_text())
    (copied / file).write_text(json.dumps(content | changes))
    return copied


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The message of the error that a call must end with."""
    with pytest.raises(LisaError) as caught:
        call(*args, **options)
    return str(caught.value)
