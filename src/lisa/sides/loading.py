"""Loading an existing side network: a folder in diffusers' layout, a run folder, or a Hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line, is_hub_name, read_json, weight_variant

_REMEDY = "Give a {kind} folder in diffusers' layout (config.json and safetensors), a run folder, or a Hub name"


def load_module(kind: str, source: str) -> Any:
    """The diffusers model of class ``kind`` in ``source``.

    Raises:
        LisaError: it cannot be loaded, is of another class, or lacks weights (which would silently be random).
    """
    import diffusers

    where, variant = _find(kind, source)
    remedy = _REMEDY.format(kind=kind)
    try:
        module, found = getattr(diffusers, kind).from_pretrained(where, variant=variant, output_loading_info=True)
    except Exception as error:  # many kinds; all mean: this cannot be loaded
        raise LisaError(f"the side network {source!r} cannot be loaded: {first_line(error)}", remedy) from error
    wrong = sorted(found["missing_keys"]) + sorted(found["unexpected_keys"])
    if wrong:
        raise LisaError(
            f"the weights of the side network {source!r} do not match its configuration: {len(wrong)} are missing "
            f"or too many ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})",
            remedy,
        )
    return module


def _find(kind: str, source: str) -> tuple[str, str | None]:
    """The folder (or Hub name) that holds the side network, and the variant of its weights."""
    path, remedy = Path(source), _REMEDY.format(kind=kind)
    if (path / "side_network").is_dir():
        path = path / "side_network"
    if not path.is_dir():
        if path.exists() or not is_hub_name(source):
            raise LisaError(f"there is no {kind} folder {source!r}", remedy)
        return source, None
    config = path / "config.json"
    if not config.is_file():
        raise LisaError(f"{str(path)!r} is not a {kind} folder (it has no config.json)", remedy)
    name = read_json(config).get("_class_name")
    if name != kind:
        raise LisaError(f"{str(path)!r} holds a {name}, not a {kind}", remedy)
    return str(path), weight_variant(path, None)
