"""Loading a main network: a diffusers folder, a Hub name or a single file, checked before gigabytes are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import SINGLE_FILES, first_line, is_hub_name, read_json, weight_variant
from lisa.mains.casting import cast
from lisa.mains.weights import FLOAT32, Weights

#: Refuses a scheduler's configuration: (configuration, source).
SchedulerCheck = Callable[[Mapping[str, Any], str], None]


@dataclass(frozen=True)
class Layout:
    """What the folder of a family looks like.

    Attributes:
        pipelines: class names that its model_index.json may have; the first is loaded.
        network: the folder of the main network.
        check_scheduler: refuses what cannot be trained on, from the scheduler's file.
        options: for ``from_pretrained``: components that training does not need, as None.
        optional: components a folder may lack (a text encoder, say).
        required: components a folder must have although diffusers loads the pipeline without them.
    """

    pipelines: tuple[str, ...]
    network: str
    check_scheduler: SchedulerCheck
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


def load_pipeline(
    layout: Layout,
    source: str,
    *,
    variant: str | None = None,
    config: str | None = None,
    weights: Weights = FLOAT32,
    network: bool = True,
) -> Any:
    """Load a family's plain pipeline.

    Args:
        layout: of the family.
        source: a folder with ``model_index.json``, a Hub name (``owner/model``), or a ``.safetensors``/``.ckpt`` file.
        variant: file variant such as ``fp16`` (found by itself in a folder that has no other).
        config: for single files: a folder (or Hub name) in diffusers' layout that tells the architecture.
        weights: what they are read into. A single file's are cast after they have been read.
        network: False: without the main network; its place is None.

    Raises:
        LisaError: nothing is there, it is of another family, or it cannot be loaded.
    """
    path = Path(source)
    single = is_single_file(source)
    options: dict[str, Any] = dict(layout.options)
    if single:
        _check_file(layout, path, config)
    else:
        variant = _check_folder(layout, path, source, variant)
        options |= _not_there(layout, path) | weights.options(layout.network)
        options |= {} if network else {layout.network: None, "quantization_config": None}
    try:
        if not single and not path.is_dir():
            _check_class(layout, _pipeline_class(layout).load_config(source), source)
            layout.check_scheduler(_hub_scheduler(source), source)
        if single:
            return _from_file(layout, source, config, options, weights)
        return _from_folder(layout, source, variant, options)
    except LisaError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub raise many kinds; all mean: this cannot be loaded
        raise LisaError(
            f"the main network {source!r} cannot be loaded: {first_line(error)}",
            "Give a diffusers folder, a Hub name (with network or a filled cache), or a single-file checkpoint"
            + (" (with model.single_file_config=FOLDER where there is no network)" if single else ""),
        ) from error


def _pipeline_class(layout: Layout) -> Any:
    import diffusers

    return getattr(diffusers, layout.pipelines[0])


def _hub_scheduler(source: str) -> Mapping[str, Any]:
    """The scheduler's file of a Hub name, a few hundred bytes; any scheduler's class reads it."""
    from diffusers import DDPMScheduler

    config: Mapping[str, Any] = DDPMScheduler.load_config(source, subfolder="scheduler")
    return config


def is_single_file(source: str) -> bool:
    """Whether ``source`` names a single-file checkpoint."""
    return Path(source).suffix in SINGLE_FILES and not Path(source).is_dir()


def _from_folder(layout: Layout, source: str, variant: str | None, options: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        # Every diffusers from 0.36 on knows torch_dtype; the newest announce that it will be called dtype.
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
        return _pipeline_class(layout).from_pretrained(source, variant=variant, **options)


def _from_file(layout: Layout, source: str, config: str | None, options: dict[str, Any], weights: Weights) -> Any:
    """All parts of a single file are read into one type by diffusers, and the VAE's is another."""
    if config is not None:
        options = {**options, "config": config, "local_files_only": Path(config).is_dir()}
    pipeline = _pipeline_class(layout).from_single_file(source, **options)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            cast(part, part.device, torch.float32 if name == "vae" else weights.dtype)
    return pipeline


def _not_there(layout: Layout, path: Path) -> dict[str, None]:
    """Optional components that a folder lacks; diffusers wants them named."""
    if not path.is_dir():
        return {}
    index = read_json(path / "model_index.json")
    return {
        name: None
        for name in layout.optional
        if not (path / name).is_dir() or not any(index.get(name) or ()) or index[name][0] is None
    }


def _check_file(layout: Layout, path: Path, config: str | None) -> None:
    """The checkpoint must exist, diffusers must read such ones, and what tells its architecture must be a folder."""
    if not path.is_file():
        raise LisaError(f"there is no checkpoint file {str(path)!r}", "Check model.path")
    if not hasattr(_pipeline_class(layout), "from_single_file"):
        raise LisaError(
            f"{str(path)!r} is a single file, and diffusers reads none into a {layout.pipelines[0]}",
            "Use a folder in diffusers' layout, or a Hub name",
        )
    if config is None:
        return
    folder = Path(config)
    if folder.is_dir():
        _check_index(layout, folder)
        _check_scheduler(layout, folder)
    elif folder.exists() or not is_hub_name(config):
        raise LisaError(f"there is no folder {config!r}", "Check model.single_file_config")


def _check_folder(layout: Layout, path: Path, source: str, variant: str | None) -> str | None:
    """Refuse before loading what can be refused before; the variant of the weights to load."""
    if path.is_dir():
        _check_index(layout, path)
        _check_scheduler(layout, path)
        return weight_variant(path / layout.network, variant)
    if path.exists():
        raise LisaError(
            f"{source!r} is a file, but no checkpoint", "A single-file checkpoint ends as one of these", SINGLE_FILES
        )
    if not is_hub_name(source):
        raise LisaError(
            f"there is no folder {source!r}",
            "Check model.path; a Hub name looks like owner/model; tiny-sd, tiny-sd3 and tiny-svd are embedded",
        )
    return variant


def _check_index(layout: Layout, folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise LisaError(
            f"{str(folder)!r} is not a diffusers model folder (it has no model_index.json)",
            f"Name the folder that contains {layout.network}/, vae/ and model_index.json",
        )
    _check_class(layout, read_json(index), str(folder))


def _check_class(layout: Layout, index: Mapping[str, Any], source: str) -> None:
    """Refuse a model_index.json of another family, or without what is needed."""
    name = index.get("_class_name")
    if name not in layout.pipelines:
        raise LisaError(
            f"{source!r} holds a {name}, which this kind of pair cannot use",
            "Choose the pair that suits it (model.pair, or --pair; see lisa models), or another main network",
            layout.pipelines,
        )
    check_required(layout.required, index, source)


def check_required(names: Sequence[str], components: Mapping[str, Any], source: str) -> None:
    """Refuse a main network without one of the components ``names``.

    Args:
        names: of components that must be there.
        components: entries of a model_index.json, or a pipeline's components.
        source: where they came from.

    Raises:
        LisaError: one is missing or null.
    """
    missing = [name for name in names if components.get(name) in (None, [None, None])]
    if missing:
        raise LisaError(
            f"{source!r} has no {' and no '.join(missing)}",
            "Use the complete base model; a refiner, or a folder saved without encoders, cannot be trained on",
        )


def _check_scheduler(layout: Layout, folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    if file.is_file():
        layout.check_scheduler(read_json(file), str(folder))
