"""Checkpoints: written whole or not at all, the newest ``limit`` kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, explain_disk_errors, restore_dir
from lisa.common.runfolder import RunFolder

_NAME = re.compile(r"step-(\d+)")
_STATE = "state"  # of accelerate, inside a checkpoint


def checkpoint_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def list_checkpoints(run: RunFolder) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [(int(m.group(1)), path) for path in run.checkpoints.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(run: RunFolder, resume: str) -> Path | None:
    """The checkpoint that ``resume`` names: ``latest`` (none yet: None), a step number, or a path.

    Raises:
        LisaError: there is no such checkpoint.
    """
    for aside in run.checkpoints.glob(".old-step-*"):  # one whose replacement was cut short
        restore_dir(aside.with_name(aside.name.removeprefix(".old-")))
    there = list_checkpoints(run)
    if resume == "latest":
        return there[-1] if there else None
    named = [path for path in there if resume == path.name or (resume.isdigit() and _step(path) == int(resume))]
    if named:
        return named[0]
    if any((Path(resume) / _STATE).glob("*")):
        return Path(resume)
    raise LisaError(
        f"there is no checkpoint {resume!r} in {str(run.checkpoints)!r}",
        "Use resume=latest, or one of these" if there else "Train from the start, without resume",
        [path.name for path in there],
    )


class Checkpoints:
    """Saves and restores a training.

    A checkpoint holds ``state/`` (accelerate's own files: weights, optimiser, random states, and every object given to
    ``accelerator.register_for_checkpointing``) and one entry per export, such as the side network as a
    diffusers folder.

    Args:
        run: the run folder.
        accelerator: whose prepared objects are saved.
        exports: name of the folder inside the checkpoint -> function that writes it (called on the main process).
        limit: how many checkpoints to keep; 0 keeps all.
    """

    def __init__(
        self,
        run: RunFolder,
        accelerator: Accelerator,
        exports: Mapping[str, Callable[[Path], None]],
        limit: int = 0,
    ) -> None:
        self.run, self.accelerator, self.exports, self.limit = run, accelerator, exports, limit

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.run.checkpoints / checkpoint_name(step)

    def save(self, step: int) -> Path:
        """Write ``checkpoints/step-NNNNNN``. Called by every process.

        Raises:
            LisaError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        final = self.path(step)
        if self.accelerator.num_processes == 1:
            with atomic_dir(final) as folder:
                self._write(folder)
        else:
            self._save_together(final)
        if self.accelerator.is_main_process:
            self._tidy(step)
        return final

    def find(self, resume: str) -> Path | None:
        """See :func:`find_checkpoint`."""
        return find_checkpoint(self.run, resume)

    def load(self, checkpoint: Path) -> None:
        """Restore everything from ``checkpoint``.

        Raises:
            LisaError: it is damaged or of another configuration.
        """
        try:
            self.accelerator.load_state(str(checkpoint / _STATE))
        except Exception as error:  # torch, safetensors, pickle and accelerate raise many kinds; all mean the same
            raise LisaError(
                f"the checkpoint {str(checkpoint)!r} is damaged or does not fit this configuration "
                f"({type(error).__name__}: {_short(error)})",
                "Resume with the configuration of the run folder (its config.yaml), or from another checkpoint",
                [path.name for path in list_checkpoints(self.run)],
            ) from error

    def give_up_after(self, step: int) -> None:
        """Remove later checkpoints: they are of what was given up by resuming from ``step``, and ``latest`` would
        return to them. On the main process.
        """
        self._tidy(step)

    def _write(self, folder: Path) -> None:
        for name, export in self.exports.items():
            export(folder / name)
        self.accelerator.save_state(str(folder / _STATE))

    def _save_together(self, final: Path) -> None:
        """Several processes write into one folder, which gets its name when all of them are done."""
        partial, main = final.with_name(f".partial-{final.name}"), self.accelerator.is_main_process
        with explain_disk_errors(final):
            try:
                if main:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
                    for name, export in self.exports.items():
                        export(partial / name)
                self.accelerator.wait_for_everyone()
                self.accelerator.save_state(str(partial / _STATE))
                self.accelerator.wait_for_everyone()
                if main:
                    shutil.rmtree(final, ignore_errors=True)
                    partial.rename(final)
            except BaseException:
                if main:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            self.accelerator.wait_for_everyone()

    def _tidy(self, step: int) -> None:
        """Keep the newest ``limit``. Later ones belong to what was given up by resuming from before them."""
        there = list_checkpoints(self.run)
        dropped = [path for path in there if _step(path) > step]
        mine = [path for path in there if _step(path) <= step]
        for old in dropped + (mine[: -self.limit] if self.limit else []):
            shutil.rmtree(old, ignore_errors=True)


class Shares:
    """Running sums of which each process holds a part, as one entry of a checkpoint.

    accelerate keeps the main process's ``state_dict`` only, and gives it to every process. What is kept here is the
    mean over the processes, so that the parts again add up to the whole.

    Args:
        holder: has ``state_dict`` (numbers, tensors, and mappings of them) and ``load_state_dict``.
        accelerator: of the training.
    """

    def __init__(self, holder: Any, accelerator: Accelerator) -> None:
        self.holder, self.accelerator = holder, accelerator

    def state_dict(self) -> dict[str, Any]:
        """Every process must call it."""
        state = self.holder.state_dict()
        return state if self.accelerator.num_processes == 1 else self._mean(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the share to the holder."""
        self.holder.load_state_dict(state)

    def _mean(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._mean(item) for name, item in value.items()}
        if isinstance(value, torch.Tensor):
            return self.accelerator.reduce(value.to(self.accelerator.device, copy=True), reduction="mean").cpu()
        return value


def _step(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def _short(error: Exception, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " ..."
