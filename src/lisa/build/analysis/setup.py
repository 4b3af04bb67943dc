"""What an analysis is of: runs, samples and networks, refused before any long work where they do not do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lisa.build import parts
from lisa.build.checks import choose_control_type, choose_guidance, choose_log_sigma
from lisa.build.chosen import choose_sides, differing, differing_models, read_run
from lisa.common.errors import LisaError
from lisa.common.files import explain_disk_errors
from lisa.data.samples import Subset
from lisa.data.transforms import PairedTransform
from lisa.mains.base import MainNetwork
from lisa.mains.weights import Weights
from lisa.pairs import Pair, pair_spec
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig

RESULT = "analysis.json"
MIN_SAMPLES, USUAL_SAMPLES = 8, 64
_PER_HELD_OUT = 2  # training samples on which probes are fitted, per held-out sample


@dataclass(frozen=True)
class Run:
    """A run folder with its side network, and what to call it: ``run`` or ``against``."""

    role: str
    path: Path
    config: TrainConfig
    side: str


def open_run(role: str, run: str | Path) -> Run:
    """A finished run.

    Raises:
        LisaError: it is no run folder, or has no side network yet.
    """
    config = read_run(Path(run))
    return Run(role, Path(run), config, choose_sides(Path(run), ())[0].source)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, without touching it.

    Raises:
        LisaError: it is a file, holds something else, or an analysis that is not to be replaced.
    """
    if folder.is_file():
        raise LisaError(f"{str(folder)!r} is a file", "Name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / RESULT).is_file():
            raise LisaError(f"{str(folder)!r} is not empty and holds no analysis", "Name another folder with --out")
        if not overwrite:
            raise LisaError(
                f"{str(folder)!r} already holds an analysis",
                "Replace it with --overwrite, or name another folder with --out",
            )
    with explain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise LisaError(f"not allowed to write {str(folder)!r}", "Name a folder that you may write to with --out")


def check_comparable(run: Run, against: Run) -> None:
    """Both must be given the same inputs, or a difference would be one of the inputs.

    Raises:
        LisaError: other data, conditions or main network; the message names the settings.
    """
    one, other = run.config, against.config
    found = {**differing_models(one, other), **differing(one, other)}
    if one.data.conditions != other.data.conditions:
        found["data.condition"] = (", ".join(one.data.conditions), ", ".join(other.data.conditions))
    if one.data.condition_column != other.data.condition_column:
        found["data.condition_column"] = (one.data.condition_column, other.data.condition_column)
    if found:
        raise LisaError(
            f"the runs {str(run.path)!r} and {str(against.path)!r} cannot be held against each other: "
            + "; ".join(f"{name} is {ours} and {theirs}" for name, (ours, theirs) in found.items()),
            "Use runs on the same data and main network, such as one with and one without alignment (--plain)",
        )


def choose_samples(config: TrainConfig, samples: int | None, seed: int) -> tuple[Subset, Subset, PairedTransform]:
    """Training samples for the probes, held-out samples for everything else, and their geometry.

    Raises:
        LisaError: fewer than :data:`MIN_SAMPLES`, or more than there are.
    """
    data = parts.open_data(config.data, config.seed, check=False)
    there = len(data.held_out)
    count = min(there, USUAL_SAMPLES) if samples is None else samples
    if not MIN_SAMPLES <= count <= there:
        raise LisaError(
            f"{count} held-out samples were asked for, the run holds out {there}"
            if samples is not None
            else f"the run holds out {there} samples (data.held_out)",
            f"An analysis needs at least {MIN_SAMPLES}; give --samples between that and what the run holds out"
            if there >= MIN_SAMPLES
            else f"An analysis needs at least {MIN_SAMPLES}: train with a larger data.held_out",
        )
    if len(data.train) < MIN_SAMPLES:
        raise LisaError(
            f"the run was trained on {len(data.train)} samples", f"Probes need at least {MIN_SAMPLES} to be fitted on"
        )
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed)).tolist()
    fit = Subset(data.train, order[: _PER_HELD_OUT * count])
    return fit, Subset(data.held_out, range(count)), data.transform


def own_device() -> torch.device:
    """The device accelerate would train on."""
    from accelerate import PartialState

    return PartialState().device


def load_main(config: TrainConfig, device: torch.device) -> MainNetwork:
    """The run's main network, in the type that it was trained beside."""
    model = config.model
    files = {"variant": model.variant, "config": model.single_file_config}
    weights = Weights(getattr(torch, config.main_dtype))
    main = pair_spec(model.pair).load_main(parts.model_source(model), **files, weights=weights)
    choose_guidance(main, model.guidance)
    choose_log_sigma(main, model.log_sigma)
    main.to(device)
    return main


def load_pair(run: Run, main: MainNetwork, device: torch.device) -> Pair:
    """The run's side network as it is given away, in eval mode, beside ``main``."""
    spec = pair_spec(run.config.model.pair)
    side = spec.load_fitting_side(main, run.side, SideOptions(conditions=len(run.config.data.conditions)))
    choose_control_type(side, run.config.side.control_type)
    side.module.to(device).eval()
    return Pair(spec, main, side, share_prior=run.config.model.share_prior)
