"""Fidelity while training: readings on fixed held-out samples, within a share of the time, and the best one kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lisa.build import parts
from lisa.build.launch import say
from lisa.build.result import Results
from lisa.common.files import atomic_dir, copy_linked, read_json, restore_dir, write_json
from lisa.evaluate import protocols
from lisa.evaluate.runner import evaluate_images
from lisa.train.config import TrainConfig
from lisa.train.loop import Callback, Training

#: Beside the weights in ``best/``: which reading they are of.
RECORD = "best.json"


def judged_conditions(config: TrainConfig, data: parts.DataParts) -> list[str]:
    """The conditions of a training that a protocol judges; it is tried on one true picture.

    Raises:
        LisaError: a package that a protocol needs is not installed, which else would show after hours.
    """
    sample = parts.Still(data.held_out, data.transform)[0]
    judged = [name for name in config.data.conditions if protocols.exists(name, sample.truth is not None)]
    for name in judged:
        evaluate_images([sample.image], [sample], name)
    return judged


@dataclass
class TimeShare:
    """Keeps what is done beside a training within a share of all the time that both take.

    Attributes:
        share: the largest, 0 to 1; None: any.
        spent: seconds, over all sittings.
        cost: seconds that the next one will take, as far as is known.
    """

    share: float | None
    spent: float = 0.0
    cost: float | None = None

    def allows(self, trained: float) -> bool:
        """Whether the next one fits, after ``trained`` seconds of training."""
        spent = self.spent + (self.cost or 0.0)
        return self.share is None or spent <= self.share * (trained + spent)


class FidelityReadings(Callback):
    """Reads the fidelity of ``log.fidelity_samples`` held-out samples every ``log.fidelity_every`` steps.

    Each sample keeps its noise, so that readings differ by the weights alone; what the training draws is not touched.
    The weights of the best reading (by the first condition that a protocol judges; of equal ones the earliest) are kept
    as ``best/``, as they would be given away: the average where there is one.

    Args:
        results: samples and judges, on the main process.
        final_weights: a context in which the side network has the weights to give away.
    """

    def __init__(self, results: Results, final_weights: Callable[[], AbstractContextManager[None]]) -> None:
        self.results, self.final_weights, self.run = results, final_weights, results.run_folder
        self.log = results.config.log
        self.time = TimeShare(self.log.fidelity_share)
        self._told = False
        self._samples: list[Any] = []
        self._judged: list[str] = []

    def on_start(self, training: Training) -> None:
        """Load the samples where they are judged, if a reading lies ahead."""
        every = self.log.fidelity_every
        if every is None or training.state.step // every == training.total_steps // every:
            return
        self._judged = judged_conditions(self.results.config, self.results.data)
        if not training.accelerator.is_main_process:
            return
        if self._judged:
            self._samples = self.results.held_out(self.log.fidelity_samples)
        else:
            conditions = ", ".join(self.results.config.data.conditions)
            say(f"no protocol judges {conditions}: fidelity is not read")

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Read, if it is time and the share of the time allows it; the other processes wait."""
        every, step = self.log.fidelity_every, training.state.step
        if every is None or step % every or not self._judged:
            return
        if training.accelerator.is_main_process:
            self._read_within_share(step, training.state.seconds)
        training.accelerator.wait_for_everyone()

    def state_dict(self) -> dict[str, Any]:
        """Time spent, and which reading is in ``best/``."""
        return {"spent": self.time.spent, "cost": self.time.cost, "best": self.results.best, "told": self._told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; see :meth:`restore`."""
        self.time.spent, self.time.cost = state["spent"], state["cost"]
        self.results.best, self._told = state["best"], state["told"]

    def keep(self, folder: Path) -> None:
        """Put ``best/`` into a checkpoint, if there is one: as further names of the same files where the disk can."""
        if self.run.best.is_dir():
            copy_linked(self.run.best, folder)

    def restore(self, checkpoint: Path | None) -> None:
        """Make ``best/`` what it was at a checkpoint (None: at the start): later readings are given up."""
        if not self.results.accelerator.is_main_process:
            return
        restore_dir(self.run.best)
        kept = None if checkpoint is None else checkpoint / self.run.best.name
        if kept is None or not kept.is_dir():
            shutil.rmtree(self.run.best, ignore_errors=True)
        elif not (self.run.best / RECORD).is_file() or read_json(self.run.best / RECORD) != read_json(kept / RECORD):
            with atomic_dir(self.run.best) as folder:
                copy_linked(kept, folder)

    def _read_within_share(self, step: int, trained: float) -> None:
        if self.time.share is not None and self.time.cost is None:
            one, count = self._timed(lambda: self._pictures(step, 1)), len(self._samples)
            self.time.cost = one * count
        if self.time.allows(trained):
            self.time.cost = self._timed(lambda: self._read(step))
        elif not self._told:
            self._told = True
            values = {"cost": round(self.time.cost or 0.0, 3), "share": self.time.share}
            self.run.log(step, "fidelity_skipped", values)
            say(
                f"step {step}: a reading of the fidelity takes {self.time.cost:.1f} s; readings that would take "
                f"more than {self.time.share:.0%} of the time are left out (log.fidelity_share)"
            )

    def _timed(self, act: Callable[[], Any]) -> float:
        began = time.monotonic()
        act()
        seconds = time.monotonic() - began
        self.time.spent += seconds
        return seconds

    def _pictures(self, step: int, count: int) -> list[Any] | None:
        results = self.results

        def make() -> list[Any]:
            # As for the grids: autocast is for the side network.
            with self.final_weights(), results.pair.main.encoders(), results.accelerator.autocast():
                return results.pictures(self._samples[:count], results.config.sample.control_scale)

        return results.unless_broken(step, make)

    def _read(self, step: int) -> None:
        began = time.monotonic()
        pictures = self._pictures(step, len(self._samples))
        if pictures is None:
            return
        judged = {name: evaluate_images(pictures, self._samples, name) for name in self._judged}
        first = self._judged[0]
        value = judged[first]["fidelity"]["value"]
        best = self.results.best
        if best is None or value > best["fidelity"]["value"]:
            self._keep_best(step, first, judged[first])
        seconds = round(time.monotonic() - began, 3)
        metric = ", ".join(result["fidelity_rule"] for result in judged.values())
        values = {name: result["fidelity"] for name, result in judged.items()}
        self.run.log(step, "fidelity", {**values, "metric": metric, "samples": len(pictures), "seconds": seconds})
        flat = {f"fidelity/{name}": interval["value"] for name, interval in values.items()}
        self.results.accelerator.log(flat, step=step)

    def _keep_best(self, step: int, condition: str, result: Mapping[str, Any]) -> None:
        best = {"step": step, "condition": condition, "fidelity": result["fidelity"], "metric": result["fidelity_rule"]}
        with atomic_dir(self.run.best) as folder, self.final_weights():
            self.results.save_side(folder, step)
            write_json(folder / RECORD, best)
        self.results.best = best
