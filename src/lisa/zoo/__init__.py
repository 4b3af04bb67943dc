"""The embedded tiny pretrained models, each with the recipe that made it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lisa.common.errors import LisaError, choose


def names() -> list[str]:
    """The models there are."""
    return sorted(path.name for path in _root().iterdir() if (path / "recipe.yaml").is_file())


def path(name: str) -> str:
    """The folder of the embedded model ``name``, in diffusers' layout.

    Raises:
        LisaError: there is no such model (the message lists what there is), or its files are not in this installation.

    Example:
        >>> StableDiffusionPipeline.from_pretrained(lisa.zoo.path("tiny-sd"))
    """
    folder = _root() / choose("embedded model", name, names()) / "model"
    if not (folder / "model_index.json").is_file():
        raise LisaError(
            f"the embedded model {name!r} is not in this installation ({str(folder)!r} has no model_index.json)",
            f"Install lisa-diffusion again, or make it with its recipe: lisa pretrain {folder.parent / 'recipe.yaml'}",
        )
    return str(folder)


def _root() -> Path:
    """Where this package's files lie; models are loaded by path, so they must be on a real disk."""
    root = files(__name__)
    if not isinstance(root, Path):
        raise LisaError(
            "the embedded models cannot be read from inside an archive", "Install lisa-diffusion unpacked, with pip"
        )
    return root
