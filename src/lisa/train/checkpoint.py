"""Checkpoints: written whole or not at all, the newest ``limit`` kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir
from lisa.common.runfolder import RunFolder

_NAME = re.compile(r"step-(\d+)")


def list_checkpoints(run: RunFolder) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [(int(m.group(1)), path) for path in run.checkpoints.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class Checkpoints:
    """Saves and restores a training.

    A checkpoint holds ``state/`` (accelerate's own files: weights, optimiser, random states, and every object given to
    ``accelerator.register_for_checkpointing``) and one entry per export, such as the side network as a diffusers folder.

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

    def save(self, step: int) -> Path:
        """Write ``checkpoints/step-NNNNNN``. Called by every process.

        Raises:
            LisaError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        final = self.run.checkpoints / f"step-{step:06d}"
        if self.accelerator.num_processes == 1:
            with atomic_dir(final) as folder:
                self._write(folder)
        else:
            self._save_together(final)
        if self.accelerator.is_main_process and self.limit:
            for old in list_checkpoints(self.run)[: -self.limit]:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def find(self, resume: str) -> Path | None:
        """The checkpoint that ``resume`` names: ``latest`` (none yet: None), a step number, or a path.

        Raises:
            LisaError: there is no such checkpoint.
        """
        there = list_checkpoints(self.run)
        if resume == "latest":
            return there[-1] if there else None
        named = [path for path in there if resume in (path.name, str(int(_NAME.fullmatch(path.name).group(1))))]  # type: ignore[union-attr]
        if named:
            return named[0]
        if list((Path(resume) / "state").glob("*")):
            return Path(resume)
        raise LisaError(
            f"there is no checkpoint {resume!r} in {str(self.run.checkpoints)!r}",
            "Use resume=latest, or one of these",
            [path.name for path in there],
        )

    def load(self, checkpoint: Path) -> None:
        """Restore everything from ``checkpoint``."""
        try:
            self.accelerator.load_state(str(checkpoint / "state"))
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise LisaError(
                f"the checkpoint {str(checkpoint)!r} does not fit this configuration: {error}",
                "Resume with the configuration of the run folder, or from another checkpoint",
            ) from error

    def _write(self, folder: Path) -> None:
        # The memory that state files take while they are written is why exports come first: they are smaller.
        for name, export in self.exports.items():
            export(folder / name)
        self.accelerator.save_state(str(folder / "state"))

    def _save_together(self, final: Path) -> None:
        """Several processes write into one folder, which gets its name when all of them are done."""
        partial = final.with_name(f".partial-{final.name}")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, export in self.exports.items():
                export(partial / name)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial / "state"))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        self.accelerator.wait_for_everyone()
