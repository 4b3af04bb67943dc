"""What can be told about a model folder in diffusers' layout without loading it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, nearest

#: How single-file checkpoints end.
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin")

_PART = r"(?:-\d+-of-\d+)"  # of weights in several files; formerly it stood before the variant
_WEIGHTS = re.compile(
    rf"diffusion_pytorch_model(?:\.(?P<variant>\w+){_PART}?|{_PART}(?:\.(?P<late>\w+))?)?\.(?:safetensors|bin)"
)


def is_hub_name(source: str) -> bool:
    """Whether ``source`` can be the name of a model on the Hub, ``owner/model``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON mapping in ``path``.

    Raises:
        LisaError: it is not readable or not a JSON mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LisaError(f"{str(path)!r} cannot be read: {first_line(error)}", "Download the model again") from None
    if not isinstance(content, dict):
        raise LisaError(f"{str(path)!r} is not a JSON mapping", "Download the model again")
    return content


def weight_variant(folder: Path, variant: str | None) -> str | None:
    """Which variant of the weights in ``folder`` to load: the one asked for, else the plain one, else the only one.

    Raises:
        LisaError: the variant asked for is not there, there are several and none is plain, or there are no weights.
    """
    matches = (_WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("diffusion_pytorch_model*")))
    found = list(dict.fromkeys(match["variant"] or match["late"] for match in matches if match))
    if not found:
        raise LisaError(
            f"there are no weights in {str(folder)!r}",
            "It needs diffusion_pytorch_model.safetensors (or .bin); download the model again",
        )
    if variant is None and (None in found or len(found) == 1):
        return None if None in found else found[0]
    if variant in found:
        return variant
    named = [name for name in found if name is not None]
    if variant is None:
        raise LisaError(f"{str(folder)!r} has several variants of its weights and no plain one", "Name one", named)
    hint = nearest(variant, named)
    raise LisaError(
        f"{str(folder)!r} has no weights of variant {variant!r}" + (f" ({hint})" if hint else ""),
        "Leave the variant empty for the plain weights" if None in found else "",
        named,
    )


def first_line(error: BaseException) -> str:
    """An exception of another library in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].strip()}" if text else type(error).__name__
