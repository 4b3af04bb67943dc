"""Weights of extractors: found on this disk or on the Hub, named exactly, loaded without surprises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line, is_hub_name
from lisa.data.folders import hash_file
from lisa.data.samples import content_hash

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
# Checkpoints may lack a few tensors that nothing uses (DPT-large does); one that lacks its head answers at random.
_MAY_LACK = 0.05


@dataclass(frozen=True)
class Weights:
    """Which weights.

    Attributes:
        source: the Hub's name, or the folder as it was named.
        revision: the commit on the Hub, or ``content:`` and a hash of the folder's files.
        folder: where they lie.
    """

    source: str
    revision: str
    folder: Path

    def to_json(self) -> dict[str, str]:
        """For the record: ``source`` and ``revision``."""
        return {"source": self.source, "revision": self.revision}


def locate(source: str) -> Weights:
    """The weights that ``source`` names: a folder, or ``owner/model`` on the Hub, optionally with ``@revision``.

    Raises:
        LisaError: there is no such folder, or the weights cannot be fetched and are not in the Hub's cache either.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LisaError(f"{source!r} has no config.json", "Name a folder that transformers' save_pretrained wrote")
        files = sorted(file for pattern in _FILES for file in folder.glob(pattern))
        digest = content_hash("weights", [(file.name, hash_file(file)) for file in files])
        return Weights(source, f"content:{digest}", folder)
    name, _, revision = source.partition("@")
    if not is_hub_name(name):
        raise LisaError(
            f"there is no folder {source!r}, and it is no name on the Hub", "Write owner/model, or a folder"
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # of the Hub, of HTTP and of the disk; all mean the same
        raise LisaError(
            f"the weights {source!r} are not on this disk, and could not be fetched ({first_line(error)})",
            "Fetch them once where there is a network, or name a folder that holds such weights",
        ) from None
    return Weights(name, found.name, found)  # the Hub's cache names snapshots by their commit


def load_model(kind: str, weights: Weights) -> Any:
    """A transformers model, in eval mode on the accelerator if there is one.

    Args:
        kind: name of the class of transformers, such as ``AutoModelForDepthEstimation``.
        weights: of it.

    Raises:
        LisaError: they are of another kind of model, damaged, or lack a part.
    """
    import transformers

    try:
        model, info = getattr(transformers, kind).from_pretrained(weights.folder, output_loading_info=True)
    except Exception as error:
        raise _unfit(kind, weights, error) from None
    missing = sorted(info["missing_keys"])
    if len(missing) > _MAY_LACK * len(model.state_dict()):
        raise LisaError(
            f"{weights.source!r} lacks {len(missing)} tensors of a {type(model).__name__} ({missing[0]} ...)",
            "Name weights that were trained for this task",
        )
    return model.eval().requires_grad_(False).to(device())


def load_processor(kind: str, weights: Weights) -> Any:
    """An image processor or a tokenizer.

    Raises:
        LisaError: there is none among the weights' files.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(weights.folder)
    except Exception as error:
        raise _unfit(kind, weights, error) from None


def device() -> Any:
    """The accelerator, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _unfit(kind: str, weights: Weights, error: Exception) -> LisaError:
    return LisaError(
        f"{weights.source!r} cannot be read as {kind} of transformers ({first_line(error)})",
        "Name weights of the right kind; docs/evaluation.md says which",
    )
