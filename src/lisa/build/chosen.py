"""Which networks are meant: side networks by run folder, folder or Hub name, each with a weight; their main network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError
from lisa.common.files import read_json
from lisa.common.model_folders import SINGLE_FILES
from lisa.common.runfolder import RunFolder
from lisa.pairs import PairSpec, pair_names, pair_spec
from lisa.sides.loading import file_config
from lisa.train.config import TrainConfig
from lisa.train.network_settings import ModelSettings
from lisa.train.settings import load_settings

# Of model.*, what says which main network it is; the rest says how it is run.
_IDENTITY = ("path", "pair", "variant", "single_file_config")


@dataclass(frozen=True)
class ChosenSide:
    """A side network to generate with.

    Attributes:
        name: as it was given.
        source: side network folder or Hub name.
        weight: its scale.
        config: of the run it comes from; None where it was not named by its run folder.
    """

    name: str
    source: str
    weight: float
    config: TrainConfig | None


def read_run(run: Path) -> TrainConfig:
    """The configuration of a run folder.

    Raises:
        LisaError: it is no run folder.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise LisaError(
            f"{str(run)!r} is not a run folder (it has no config.yaml)", "Name the folder that lisa train wrote"
        )
    return load_settings(TrainConfig, folder.config)


def side_of_run(run: Path) -> tuple[Path, TrainConfig]:
    """The folder of a run's side network, and the configuration of the run.

    Raises:
        LisaError: it is no run folder, or its training has not come to an end.
    """
    folder, config = RunFolder(run).side_network, read_run(run)
    if not folder.is_dir():
        raise LisaError(f"the run {str(run)!r} has no side network yet", "Let the training finish (--resume)")
    return folder, config


def spec_of_side(path: Path) -> PairSpec | None:
    """The first kind of pair that the side network in a folder or a single file is of; None: nothing there tells it.

    SDXL's side networks are of the same classes as those of Stable Diffusion, and are told by their configuration.

    Raises:
        LisaError: it is no side network, or a file that cannot be read.
    """
    if path.is_file() and path.suffix in SINGLE_FILES:
        config = file_config(path)
    else:
        config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if config is None:
        return None
    kind = config.get("_class_name")
    specs = [spec for spec in map(pair_spec, pair_names()) if spec.side_kind == kind]
    if not specs:
        known = dict.fromkeys(pair_spec(name).side_kind for name in pair_names())
        raise LisaError(f"{str(path)!r} holds a {kind}, which is no side network", choices=known)
    xl = config.get("addition_embed_type") == "text_time" or config.get("adapter_type") == "full_adapter_xl"
    return next((spec for spec in specs if spec.name.startswith("sdxl") == xl), specs[0])


def split_weight(text: str) -> tuple[str, float]:
    """``A=0.8`` as (``A``, 0.8), and ``A`` as (``A``, 1.0).

    Only a number after the last ``=`` is a weight, and what lies on this disk under the whole name is meant as it is:
    the run folder ``runs/lr=0.001`` has the weight 1, and ``runs/lr=0.001=0.5`` another one.

    Raises:
        LisaError: a negative or infinite weight.
    """
    name, sign, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not sign or not name or Path(text).exists():
        return text, 1.0
    if not math.isfinite(weight) or weight < 0:
        raise LisaError(f"the weight of {text!r} is {number}", "A weight is a number of at least 0")
    return name, weight


def choose_sides(run: Path | None, sides: Sequence[str]) -> list[ChosenSide]:
    """The side networks named with ``--side``, or else the run's own.

    Raises:
        LisaError: none was named, or a run has none yet.
    """
    if sides:
        return [_side(*split_weight(text)) for text in sides]
    if run is None:
        raise LisaError("no side network was named", "Give --run RUN or --side FOLDER")
    return [_of_run(str(run), run, 1.0)]


def control_types(run: TrainConfig | None, sides: Sequence[ChosenSide]) -> list[int | None]:
    """The kind of condition of each side network: its own run's, else that of ``run``; None: not told."""
    configs = [side.config if side.config is not None else run for side in sides]
    return [None if config is None else config.side.control_type for config in configs]


def _side(name: str, weight: float) -> ChosenSide:
    path = Path(name)
    return _of_run(name, path, weight) if RunFolder(path).config.is_file() else ChosenSide(name, name, weight, None)


def _of_run(name: str, run: Path, weight: float) -> ChosenSide:
    folder, config = side_of_run(run)
    return ChosenSide(name, str(folder), weight, config)


def choose_model(
    path: str | None, run: TrainConfig | None, sides: Sequence[ChosenSide], pair: str | None = None
) -> ModelSettings:
    """The main network: ``path``, or that of the run, or that of the side networks' runs, which must agree.

    The kind of pair: ``pair``, or the runs', or what the first side network tells (:func:`spec_of_side`).

    Raises:
        LisaError: they do not, or nothing tells which it is; or what was named is no side network.
    """
    runs = [("--run", run), *[(side.name, side.config) for side in sides]]
    known = [(name, config.model) for name, config in runs if config is not None]
    if not known and path is None:
        raise LisaError(
            "no main network was named",
            "Give --model (tiny-sd, tiny-sd3, tiny-svd, a folder or a Hub name) beside --side",
        )
    chosen = known[0][1] if known else ModelSettings()
    if path is not None:
        chosen = chosen.model_copy(update={"path": path})
    if pair is None and not known:
        spec = spec_of_side(Path(sides[0].source))
        pair = None if spec is None else spec.name
    if pair is not None:
        chosen = chosen.model_copy(update={"pair": pair})
    for name, model in known[1:]:
        for key in _IDENTITY:
            ours, theirs = getattr(known[0][1], key), getattr(model, key)
            if ours != theirs and not (key == "path" and path is not None):
                raise LisaError(
                    f"{known[0][0]!r} and {name!r} have different main networks: model.{key} is {ours} and {theirs}",
                    "Use side networks of one main network together"
                    + ("; if it is one by two names, say --model" if key == "path" else ""),
                )
    return chosen


def differing_models(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that say which main network it is, in which two runs differ."""
    pairs = {name: (getattr(one.model, name), getattr(other.model, name)) for name in _IDENTITY}
    return {f"model.{name}": values for name, values in pairs.items() if values[0] != values[1]}


def differing(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings of the data, as far as they say which pictures are held out, in which two runs differ."""
    aside = {"condition", "condition_column", "flip", "cache", "cache_dir", "workers"}
    a, b = (config.data.model_dump(mode="json", exclude=aside) for config in (one, other))
    return {f"data.{name}": (a[name], b[name]) for name in a if a[name] != b[name]}
