"""Loading an existing side network: a folder in diffusers' layout, a run folder, a Hub name, or a single file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from lisa.common.errors import LisaError
from lisa.common.files import write_json
from lisa.common.model_folders import SINGLE_FILES, first_line, is_hub_name, read_json, weight_variant
from lisa.sides.original import CONTROL_PREFIX

#: Where single files that this library writes keep the configuration, as JSON, in their metadata.
CONFIG_KEY = "lisa.config"

_REMEDY = (
    "Give a {kind} folder in diffusers' layout (config.json and safetensors), a run folder, a Hub name, or a "
    ".safetensors file"
)

#: A diffusers module -> its parameters' names as the code that it comes from has them.
Names = Callable[[Any], Mapping[str, str]]


def load_module(
    kind: str,
    source: str,
    *,
    package: str = "diffusers",
    original_names: Names | None = None,
    default_config: Callable[[], Mapping[str, Any]] | None = None,
) -> Any:
    """The model of class ``kind`` (of ``package``, in diffusers' manner) in ``source``.

    Args:
        kind: name of the class.
        source: folder, run folder, Hub name, or ``.safetensors`` file with diffusers' names or original ones.
        package: that has the class.
        original_names: of the parameters, where there are such.
        default_config: makes the configuration for a file that tells none.

    Raises:
        LisaError: it cannot be loaded, is of another class, or lacks weights (which would silently be random).
    """
    path, model_class = Path(source), getattr(import_module(package), kind)
    if path.suffix in SINGLE_FILES and path.is_file():
        return _from_file(model_class, path, original_names, default_config)
    return _from_folder(model_class, source)


def file_config(path: Path) -> dict[str, Any] | None:
    """The configuration that a single file tells in its metadata; None: it tells none.

    Raises:
        LisaError: it is no readable safetensors file.
    """
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise LisaError(f"{str(path)!r} may run code when it is read", "Convert it to .safetensors first")
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(CONFIG_KEY, "null"))
    except Exception as error:  # safetensors has its own, and JSON's
        raise LisaError(f"{str(path)!r} cannot be read: {first_line(error)}", "Download or export it again") from error
    return found if isinstance(found, dict) else None


def forget_origin(folder: Path) -> None:
    """Drop the path that a saved model's weights once came from out of its config.json, which is shared."""
    config = read_json(folder / "config.json")
    if config.pop("_name_or_path", None) is not None:
        write_json(folder / "config.json", config)


def _from_folder(model_class: Any, source: str) -> Any:
    kind = model_class.__name__
    where, variant = _find(kind, source)
    remedy = _REMEDY.format(kind=kind)
    try:
        module, found = model_class.from_pretrained(where, variant=variant, output_loading_info=True)
    except Exception as error:  # many kinds; all mean: this cannot be loaded
        raise LisaError(f"the side network {source!r} cannot be loaded: {first_line(error)}", remedy) from error
    _refuse_misfits(source, kind, found["missing_keys"], found["unexpected_keys"])
    return module


def _from_file(
    model_class: Any, path: Path, names: Names | None, default_config: Callable[[], Mapping[str, Any]] | None
) -> Any:
    from safetensors.torch import load_file

    kind = model_class.__name__
    config: Mapping[str, Any] | None = file_config(path)
    if config is not None and config.get("_class_name") != kind:
        raise LisaError(f"{str(path)!r} holds a {config.get('_class_name')}, not a {kind}", _REMEDY.format(kind=kind))
    if config is None and default_config is not None:
        config = default_config()
    if config is None:
        raise LisaError(
            f"{str(path)!r} does not tell its configuration",
            f"Use a file that lisa export wrote, or a {kind} folder with a config.json",
        )
    module = model_class.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    weights, known = load_file(path), module.state_dict().keys()
    if names is not None and not known & weights.keys():
        weights = _in_diffusers_names(weights, names(module))
    _refuse_misfits(str(path), kind, known - weights.keys(), weights.keys() - known)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise LisaError(
            f"the weights in {str(path)!r} are of another size: {last}", _REMEDY.format(kind=kind)
        ) from None
    return module.eval()


def _in_diffusers_names(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Original names to diffusers'; of a whole checkpoint, the side network's part."""
    inside = {key: value for key, value in weights.items() if key.startswith(CONTROL_PREFIX)}
    ours = {original.removeprefix(CONTROL_PREFIX): name for name, original in names.items()}
    bare = {key.removeprefix(CONTROL_PREFIX): value for key, value in (inside or weights).items()}
    return {ours.get(key, key): value for key, value in bare.items()}


def _refuse_misfits(source: str, kind: str, missing: Any, unexpected: Any) -> None:
    wrong = sorted(missing) + sorted(unexpected)
    if wrong:
        raise LisaError(
            f"the weights of the side network {source!r} do not match its configuration: {len(wrong)} are missing "
            f"or too many ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})",
            _REMEDY.format(kind=kind),
        )


def _find(kind: str, source: str) -> tuple[str, str | None]:
    """The folder (or Hub name) that holds the side network, and the variant of its weights."""
    path, remedy = Path(source), _REMEDY.format(kind=kind)
    if (path / "side_network").is_dir():
        path = path / "side_network"
    if not path.is_dir():
        if path.exists() or not is_hub_name(source) or path.suffix in SINGLE_FILES:
            raise LisaError(f"there is no {kind} folder {source!r}", remedy)
        return source, None
    config = path / "config.json"
    if not config.is_file():
        raise LisaError(f"{str(path)!r} is not a {kind} folder (it has no config.json)", remedy)
    name = read_json(config).get("_class_name")
    if name != kind:
        raise LisaError(f"{str(path)!r} holds a {name}, not a {kind}", remedy)
    return str(path), weight_variant(path, None)
