"""What surrounds a training: one accelerator, its trackers, and the first lines of the record."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs

from lisa.build.parts import DataParts
from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line
from lisa.common.runfolder import RunFolder
from lisa.data.images import load_rgb
from lisa.train.config import TrainConfig
from lisa.train.precision import attention
from lisa.train.settings import changed_settings, save_settings

#: How long processes wait for one that works alone: the main one fills caches, and judges pictures at the end. The ten
#: minutes that are usual between GPUs would end the training there.
_PATIENCE = timedelta(hours=12)
_NEW_PROCESS = "Start a new Python process, or use the same train.mixed_precision as before"


@contextmanager
def session(config: TrainConfig) -> Iterator[Accelerator]:
    """An accelerator for one training; its trackers are closed at the end, also after an error.

    accelerate keeps its settings in the process: where it was not in use before, they are cleared again, so that one
    program can train several times with different ones.

    Raises:
        LisaError: this machine cannot do the mixed precision, or the tracker is not installed.
    """
    fresh = not AcceleratorState._shared_state
    accelerator = _accelerator(config)
    try:
        with attention(accelerator.device, accelerator.mixed_precision == "bf16"):
            yield accelerator
    finally:
        # Not end_training(): it leaves the process group, which the next training could not safely join again.
        for tracker in accelerator.trackers:
            tracker.finish()
        if fresh:
            AcceleratorState._reset_state()
            GradientState._reset_state()


def _accelerator(config: TrainConfig) -> Accelerator:
    tracker, precision = config.log.tracker, config.train.mixed_precision
    if tracker == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise LisaError(
                "log.tracker=wandb needs the package wandb",
                "pip install 'lisa-diffusion[wandb]', or log.tracker=tensorboard",
            ) from None
    cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available()
    )
    device = "cpu" if cpu else torch.accelerator.current_accelerator().type
    if precision == "fp16" and device in ("cpu", "mps"):
        raise LisaError(
            f"train.mixed_precision=fp16 needs a GPU; this device is {device}", "Use train.mixed_precision=no or bf16"
        )
    try:
        return Accelerator(
            gradient_accumulation_steps=config.train.accumulation,
            mixed_precision=precision,
            log_with=None if tracker == "none" else tracker,
            project_dir=str(config.out),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            cpu=cpu,  # unless told, accelerate takes no notice of torchrun's other processes where there is no GPU
        )
    except ValueError as error:
        remedy = _NEW_PROCESS if "already been initialized" in str(error) else "Use train.mixed_precision=no or bf16"
        raise LisaError(
            f"train.mixed_precision={precision} cannot be used here ({first_line(error)})", remedy
        ) from error


def begin_tracking(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open TensorBoard's files in ``OUT/tracker``, or a W&B run named after the run folder."""
    settings = {"config": config.model_dump_json()}
    if config.log.tracker == "wandb":
        names = {"name": config.out.resolve().name, "dir": str(config.out)}
        accelerator.init_trackers("lisa", config=settings, init_kwargs={"wandb": names})
    else:
        accelerator.init_trackers("tracker", config=settings)


def track_picture(accelerator: Accelerator, name: str, picture: Path, step: int) -> None:
    """Show a picture file in TensorBoard or W&B, beside the curves; on the main process."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: load_rgb(picture)[None]}, step=step, **layout)


def record_start(
    config: TrainConfig, run_folder: RunFolder, data: DataParts, step: int, checkpoint: Path | None, quiet: bool
) -> None:
    """Write ``config.yaml`` and the first event of this sitting; on the main process, once everything has been loaded.

    The configuration is written as one to continue with: without ``resume`` and ``overwrite``.
    """
    facts = {"train_samples": len(data.train), "held_out_samples": len(data.held_out), "notes": data.notes}
    notes = list(data.notes)
    if config.resume is None or not any(run_folder.read_events()):
        run_folder.log(step, "started", facts)
    else:
        changes = changed_settings(run_folder.config, config)
        notes += [f"{name} is {new!r} now, it was {old!r}" for name, (old, new) in changes.items()]
        where = {"checkpoint": None if checkpoint is None else checkpoint.name, "changed": changes}
        run_folder.log(step, "resumed", {**where, **facts})
    save_settings(config.model_copy(update={"resume": None, "overwrite": False}), run_folder.config)
    if not quiet:
        for note in notes:
            say(note)


def say(note: str) -> None:
    """Tell people something beside the results, which alone go to the standard output."""
    print(f"note: {note}", file=sys.stderr)


def under_autocast(step: Any, accelerator: Accelerator) -> Any:
    """``step``, run in the training's mixed precision."""

    def call(batch: Any, number: int) -> Any:
        with accelerator.autocast():
            return step(batch, number)

    return call
