"""What happens beside the training: events, progress bar, checkpoints, moving average, and calls every K steps."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch import Tensor

from lisa.common.runfolder import RunFolder
from lisa.train.checkpoint import Checkpoints
from lisa.train.loop import Callback, Training


class EventLog(Callback):
    """Writes the training's scalars to ``events.jsonl`` and to accelerate's trackers every ``every`` steps.

    An event holds means over the steps since the last one and over all processes. What has been summed up belongs to a
    checkpoint (``state_dict``), so that a resumed run writes the very events of an uninterrupted one.

    Args:
        run: the run folder.
        every: steps between events.
        extra: further scalars for each event, called on every process (so that it may reduce across them).
    """

    def __init__(self, run: RunFolder, every: int, extra: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.run, self.every, self.extra = run, every, extra
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Sum up on the device; read and write only every ``every`` steps."""
        for name, value in logs.items():
            self._sums[name] = self._sums[name].to(value) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1  # not every figure comes with every step
        if training.state.step % self.every == 0 or training.state.step >= training.total_steps:
            self._write(training)

    def on_end(self, training: Training, finished: bool) -> None:
        """Say why it ended, if it did not finish."""
        if not finished and training.accelerator.is_main_process:
            reason = training.stop.signal_name or ("not finite" if training.state.skipped_in_a_row else "asked to")
            self.run.log(training.state.step, "stopped", {"reason": reason, "skipped": training.state.skipped})

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts since the last event."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _write(self, training: Training) -> None:
        means = {name: value.float() / self._counts[name] for name, value in self._sums.items()}
        means = training.accelerator.reduce(means, reduction="mean")
        state = training.state
        values: dict[str, Any] = {
            **{name: float(value) for name, value in means.items()},
            **self.extra(),
            "learning_rate": training.scheduler.get_last_lr()[0],
            "skipped": state.skipped,
            "seconds": round(state.seconds, 3),
        }
        self._sums, self._counts = {}, {}
        if training.accelerator.is_main_process:
            self.run.log(state.step, "train", values)
            training.accelerator.log(values, step=state.step)


class Progress(Callback):
    """A progress bar with the time left and the figures of ``describe``; plain lines where there is no terminal.

    Both go to standard error: standard output belongs to results.

    Args:
        label: what is being trained.
        describe: a short text for the bar, such as ``"loss 0.123  gain 0.310"``, from the latest logs.
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
        console = Console(stderr=True)
        if not training.accelerator.is_main_process or not console.is_terminal:
            return
        columns = ("{task.description}", BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=console)
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
            line = progress_line(self.label, step, training.total_steps, self.describe(logs), left)
            print(line, file=sys.stderr, flush=True)

    def on_exit(self, training: Training) -> None:
        """Close the bar: left open, it would hide the cursor and garble the message of an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_line(label: str, step: int, total: int, figures: str, left: float) -> str:
    """What stands for the bar where there is no terminal; ``left`` in seconds."""
    return f"{label} {step}/{total}  {figures}  {timedelta(seconds=round(left))} left"


class SaveCheckpoints(Callback):
    """A checkpoint every ``every`` steps, and one when the training ends or is interrupted."""

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self._last = self._tried = -1

    def on_start(self, training: Training) -> None:
        """What was resumed from need not be written again."""
        if training.state.step and self.checkpoints.path(training.state.step).is_dir():
            self._last = self._tried = training.state.step

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Save, unless this is the last step, which :meth:`on_end` saves."""
        if training.state.step % self.every == 0 and training.state.step < training.total_steps:
            self._save(training)

    def on_end(self, training: Training, finished: bool) -> None:
        """Save what there is, whether the training finished or was stopped."""
        if training.state.step != self._last:
            self._save(training)

    def on_error(self, training: Training) -> None:
        """Save, in the only process there is: others would not come to save with it."""
        if training.accelerator.num_processes == 1 and training.state.step != self._tried:
            with contextlib.suppress(Exception):  # the error that brought us here is the one to tell
                self._save(training)

    def _save(self, training: Training) -> None:
        self._tried = training.state.step
        self.checkpoints.save(training.state.step)
        self._last = training.state.step


class FreshStart(Callback):
    """After the first ``steps`` steps, starts the optimiser anew for parameters that had no gradient in them.

    Adam counts steps of which it saw nothing: the first real ones would be several times the learning rate.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """Once, before the checkpoint of that step."""
        if training.state.step != self.steps:
            return
        for known in training.optimizer.state.values():
            moments = [value for value in known.values() if isinstance(value, Tensor) and value.dim()]
            if moments and "step" in known and not any(bool(moment.any()) for moment in moments):
                known["step"] = 0 * known["step"]  # a tensor, or a number


class MovingAverage(Callback):
    """Keeps diffusers' ``EMAModel`` up to date."""

    def __init__(self, ema: Any, parameters: Callable[[], Any]) -> None:
        self.ema, self.parameters = ema, parameters

    def on_start(self, training: Training) -> None:
        """A checkpoint brings the average back on the CPU."""
        self.ema.to(training.accelerator.device)

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
