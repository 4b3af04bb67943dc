"""What a training leaves behind: sample grids, the side network with its card, fidelity, and the summary."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import lisa
from lisa.build import parts
from lisa.build.card import write_run_card
from lisa.build.launch import say
from lisa.common.files import atomic_dir, write_json
from lisa.common.runfolder import CONTROLLED, RunFolder
from lisa.core.held_out import ConditionGap
from lisa.data.samples import Sample
from lisa.evaluate import protocols
from lisa.evaluate.runner import evaluate_images, fidelity_gain
from lisa.pairs import Pair
from lisa.sample.clips import animation, animation_scale, contact_sheet, save_animation, sheet_scale
from lisa.sample.grids import grid_layout, labelled_grid, save_png, titled_rows
from lisa.sample.pictures import BrokenPictures, Request, SamplerSettings, sample_requests, set_solver
from lisa.sides.low_rank import without_adapters
from lisa.train.config import TrainConfig
from lisa.train.held_out import HeldOutMeter
from lisa.train.loop import LoopState

_T = TypeVar("_T")

TITLES = ("without control", CONTROLLED, "ground truth")  # after the condition's, or the conditions'
ENDS = ("value", "low", "high")

#: At this share of the learning rate, decoders have not been seen to silence themselves.
GENTLE = 0.1


class Results:
    """Samples from, and writes down, the side network in its current weights."""

    def __init__(
        self, config: TrainConfig, run_folder: RunFolder, accelerator: Accelerator, pair: Pair, data: parts.DataParts
    ) -> None:
        self.config, self.run_folder, self.accelerator, self.pair = config, run_folder, accelerator, pair
        self.data = data
        self._without: list[np.ndarray] = []  # the frozen network's pictures, which never change
        self.picture: Path | None = None
        self.best: dict[str, Any] | None = None  # reading of the fidelity, kept by lisa.build.fidelity

    def held_out(self, count: int) -> list[Sample]:
        """The first ``count`` held-out samples, at the size of the training."""
        samples = parts.Still(self.data.held_out, self.data.transform)
        return [samples[i] for i in range(min(count, len(samples)))]

    def pictures(self, samples: list[Sample], control_scale: float) -> list[np.ndarray]:
        """One picture or clip per sample; the seed is the sample's number, so arms and scales share their noise."""
        settings, call = self.config.sample, self.pair.call
        requests = [Request.of(sample, seed, call) for seed, sample in enumerate(samples)]
        sampler = SamplerSettings(settings.steps, settings.guidance, control_scale, settings.batch_size)
        with without_adapters(self.pair.side.module):  # the network that is given away, to the last bit
            pipeline = self.pair.pipeline()
            set_solver(pipeline)
            return [picture for _, picture in sample_requests(pipeline, requests, sampler, call)]

    def draw_samples(self, step: int) -> Path | None:
        """The grid condition(s) | without | with control | truth of a few samples; see :meth:`unless_broken`.

        Of clips a contact sheet, and beside it an animation of the same name.
        """
        return self.unless_broken(step, lambda: self._draw(step))

    def unless_broken(self, step: int, make: Callable[[], _T]) -> _T | None:
        """What ``make`` gives, or None and a note where sampled pictures are not finite.

        The training itself watches its loss, and goes on.
        """
        try:
            return make()
        except BrokenPictures as error:
            say(f"step {step}: {error}")
            self.run_folder.log(step, "broken_pictures", {"problem": str(error)})
            return None

    def _draw(self, step: int) -> Path:
        count = self.config.log.samples
        samples = self.held_out(count)
        self._without = self._without or self.pictures(samples, 0.0)
        made = self.pictures(samples, self.config.sample.control_scale)
        rows = [
            (s.condition, plain, controlled, s.image)
            for s, plain, controlled in zip(samples, self._without, made, strict=True)
        ]
        path = self.run_folder.samples / f"step-{step:06d}.png"
        cells, titles = titled_rows(self.config.data.conditions, rows, TITLES)
        values: dict[str, Any] = {"path": path.name, "grid": grid_layout(titles)}
        if self.pair.main.video:
            columns = dict(zip(titles, zip(*cells, strict=True), strict=True))
            moving = save_animation(animation(columns), path.with_suffix(".webp"), samples[0].rate)
            save_png(contact_sheet(columns), path)
            values |= {"animation": moving.name, "animation_grid": grid_layout(titles, animation_scale(columns))}
            values["grid"] = grid_layout(titles, sheet_scale(columns))
        else:
            save_png(labelled_grid(cells, titles), path)
        self.picture = path
        self.run_folder.log(step, "samples", values)
        return path

    def save_side(self, folder: Path, steps: int) -> None:
        """The side network after ``steps`` steps as a plain diffusers folder, with its card."""
        self.pair.side.save(folder)
        write_run_card(folder, self.run_folder, self.config, steps, self.pair.call.more)

    def fidelities(self) -> dict[str, dict[str, Any]]:
        """Fidelity to each condition, with and without the side network, on held-out samples.

        The same pictures are judged for each; conditions that no protocol judges are left out.
        """
        samples = self.held_out(self.config.sample.count)
        exact = samples[0].truth is not None
        judged = [name for name in self.config.data.conditions if protocols.exists(name, exact)]
        if not judged:
            return {}
        scales = {"with": self.config.sample.control_scale, "without": 0.0}
        made = {name: self.pictures(samples, scale) for name, scale in scales.items()}
        return {condition: self._judge(made, samples, condition) for condition in judged}

    def _judge(self, made: dict[str, list[np.ndarray]], samples: list[Sample], condition: str) -> dict[str, Any]:
        sides = {name: evaluate_images(pictures, samples, condition) for name, pictures in made.items()}
        rule = sides["with"]
        return {
            **{name: result["fidelity"] for name, result in sides.items()},
            "gain": fidelity_gain(sides["with"], sides["without"]).to_json(),
            "metric": rule["fidelity_rule"],
            "unit": rule["fidelity_unit"],
            "protocol": rule["protocol"],
            "samples": rule["samples"],
            "metrics": {
                name: {side: {end: result["metrics"][name][end] for end in ENDS} for side, result in sides.items()}
                | {about: figure[about] for about in ("unit", "higher_is_better")}
                for name, figure in rule["metrics"].items()
            },
        }

    def finish(self, state: LoopState, held_out: HeldOutMeter, elapsed: float) -> dict[str, Any]:
        """Save the side network, judge it, and write ``summary.json``. The summary is returned on every process."""
        gap = held_out.read(state.step)
        summary: dict[str, Any] = {}
        stacked = len(self.config.data.conditions)
        if self.accelerator.is_main_process:
            with atomic_dir(self.run_folder.side_network) as folder:
                self.save_side(folder, state.step)
            with self.pair.main.encoders(), self.accelerator.autocast():
                fidelities = self.unless_broken(state.step, self.fidelities) or {}
                picture = self.picture or self.draw_samples(state.step)  # resumed after its last step: none drawn yet
            summary = {
                "model": self.config.model.path,
                "pair": self.config.model.pair,
                "condition": self.config.data.condition,
                "arm": "lisa" if self.config.align.active else "plain",
                "preset": self.config.preset,
                "steps": state.step,
                "batch_size": self._batch_size(),
                "seconds": round(state.seconds, 1),
                "total_seconds": round(elapsed, 1),
                "peak_rss_mb": round(peak_rss_mb(), 1),
                "peak_device_mb": peak_device_mb(self.accelerator.device),
                "control_gain": gap.control_gain.to_json(),
                "condition_gap": gap.gap.to_json(),
                "decoder_r2": gap.decoder_r2.to_json(),
                "onset": held_out.onset.onset,
                "fidelity": fidelities.get(self.config.data.conditions[0]) if stacked == 1 else None,
                "fidelities": fidelities,
                "notes": self._notes(gap),
                "best": self.best,
                "skipped": state.skipped,
                "seed": self.config.seed,
                "side_network": str(self.run_folder.side_network),
                "call_options": dict(self.pair.call.more),
                "weights": "raw" if self.config.train.ema is None else "ema",
                "picture": None if picture is None else str(picture),
                "versions": {"lisa": lisa.__version__, "torch": torch.__version__, "python": platform.python_version()},
            }
            write_json(self.run_folder.summary, summary)
            for note in summary["notes"]:
                say(f"note: {note}")
            card = (self.run_folder.side_network, self.run_folder, self.config, state.step)
            write_run_card(*card, self.pair.call.more, summary)
        return broadcast_object_list([summary])[0]

    def _notes(self, gap: ConditionGap) -> list[str]:
        """What to know about the figures. A decoder that is let go, or taught at random, may read nothing."""
        align = self.config.align
        if align.schedule != "constant" or align.target != "likelihood" or not gap.decoder_reads_nothing:
            return []
        lively = self.config.train.decoder_lr_multiplier <= GENTLE
        remedy = "another align.layer" if lively else f"train.decoder_lr_multiplier={GENTLE}, or another align.layer"
        return [
            "the decoder reads nothing off the side network's features (its R2 is 0 where control is not), so the "
            f"alignment did not help; try {remedy} (docs/method.md, the learning meter)"
        ]

    def _batch_size(self) -> int:
        """Samples per optimiser step, over all processes."""
        return self.config.train.batch_size * self.config.train.accumulation * self.accelerator.num_processes


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_device_mb(device: torch.device) -> float | None:
    """The most memory of the accelerator that tensors of this process took so far, in MiB; None on the CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None
