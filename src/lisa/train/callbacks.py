"""What happens beside the training: events, progress bar, checkpoints, an exponential average, and calls every K steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lisa.common.runfolder import RunFolder
from lisa.train.checkpoint import Checkpoints
from lisa.train.loop import Callback, Training


class EventLog(Callback):
    """Writes the training's scalars to ``events.jsonl`` and to accelerate's trackers every ``every`` steps.

    Args:
        run: the run folder.
        every: steps between events.
        extra: further scalars for each event, called on every process (so that it may reduce across them).
    """

    def __init__(self, run: RunFolder, every: int, extra: Callable[[], Mapping[str, float]] = dict) -> None:
        self.run, self.every, self.extra = run, every, extra
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Sum up on the device; read and write only every ``every`` steps."""
        for name, value in logs.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        if training.state.step % self.every == 0 or training.state.step >= training.total_steps:
            self._write(training)

    def on_end(self, training: Training, finished: bool) -> None:
        """Write what is left."""
        if self._count:
            self._write(training)

    def _write(self, training: Training) -> None:
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        state = training.state
        values: dict[str, Any] = {
            **means,
            **self.extra(),
            "learning_rate": training.scheduler.get_last_lr()[0],
            "skipped": state.skipped,
            "seconds": round(state.seconds, 3),
        }
        self._sums, self._count = {}, 0
        if training.accelerator.is_main_process:
            self.run.log(state.step, "train", values)
            training.accelerator.log(values, step=state.step)


class Progress(Callback):
    """A progress bar with the time left and the figures of ``describe``; plain lines where there is no terminal.

    Args:
        describe: a short text for the bar, such as ``"loss 0.12, control gain 0.31"``, from the latest logs.
        label: what is being trained.
        every: steps between plain lines.
    """

    def __init__(self, label: str, describe: Callable[[Mapping[str, Tensor]], str], every: int = 100) -> None:
        self.label, self.describe, self.every = label, describe, every
        self._bar: Any = None
        self._started = (0.0, 0)

    def on_start(self, training: Training) -> None:
        """Open the bar, on the main process only."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._started = (time.monotonic(), training.state.step)
        self._console = Console()
        if not training.accelerator.is_main_process or not self._console.is_terminal:
            return
        columns = ("{task.description}", BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self._console)
        self._task = self._bar.add_task(self.label, total=training.total_steps, completed=training.state.step, text="")
        self._bar.start()

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Advance; the figures, which have to be fetched from the device, only now and then."""
        step = training.state.step
        if self._bar is not None:
            text = {"text": self.describe(logs)} if step % 10 == 0 or step == training.total_steps else {}
            self._bar.update(self._task, completed=step, **text)
        elif training.accelerator.is_main_process and (step % self.every == 0 or step == training.total_steps):
            began, first = self._started
            left = (time.monotonic() - began) / (step - first) * (training.total_steps - step)
            print(
                f"{self.label}  step {step}/{training.total_steps}  {self.describe(logs)}  {left:.0f}s left", flush=True
            )

    def on_end(self, training: Training, finished: bool) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()


class SaveCheckpoints(Callback):
    """A checkpoint every ``every`` steps, and one when the training ends or is interrupted."""

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self._last = -1

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Save, unless this is the last step, which :meth:`on_end` saves."""
        if training.state.step % self.every == 0 and training.state.step < training.total_steps:
            self._save(training)

    def on_end(self, training: Training, finished: bool) -> None:
        """Save what there is, whether the training finished or was stopped."""
        if training.state.step != self._last:
            self._save(training)

    def _save(self, training: Training) -> None:
        self.checkpoints.save(training.state.step)
        self._last = training.state.step


class MovingAverage(Callback):
    """Keeps diffusers' ``EMAModel`` up to date."""

    def __init__(self, ema: Any, parameters: Callable[[], Any]) -> None:
        self.ema, self.parameters = ema, parameters

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """One update of the average, unless the step was thrown away."""
        if not training.state.skipped_in_a_row:
            self.ema.step(self.parameters())


class Every(Callback):
    """Calls ``act(step)`` every ``every`` steps, at the last step, and before the first if ``at_start``."""

    def __init__(self, every: int, act: Callable[[int], None], *, at_start: bool = False) -> None:
        self.every, self.act, self.at_start = every, act, at_start

    def on_start(self, training: Training) -> None:
        """The picture before any training, if asked for."""
        if self.at_start and training.state.step == 0:
            self.act(0)

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Act if it is time."""
        step = training.state.step
        if step % self.every == 0 or step >= training.total_steps:
            self.act(step)
