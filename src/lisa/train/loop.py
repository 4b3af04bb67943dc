"""The training loop: it takes any step, and everything else that happens is a callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lisa.common.errors import TrainingStopped
from lisa.train.interrupt import StopRequest


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass gives: ``loss`` (scalar, with gradient) and scalars for the log (on the device)."""

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class LoopState:
    """Where the training is; saved with every checkpoint, so that a resumed run goes on exactly there."""

    step: int = 0  # optimiser steps done
    micro_step: int = 0  # batches consumed (``accumulation`` of them make a step)
    skipped: int = 0  # steps thrown away because loss or gradient was not finite
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # training time over all sittings

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class ClipGroup:
    """Parameters whose gradients are clipped together to ``max_norm``."""

    parameters: Sequence[nn.Parameter]
    max_norm: float


class Callback:
    """Something that happens beside the training. Every method may be left as it is."""

    def on_start(self, training: Training) -> None:
        """Before the first step of this sitting."""

    def after_step(self, training: Training, logs: Mapping[str, Tensor]) -> None:
        """After every optimiser step; ``logs`` are means over its micro-steps, still on the device."""

    def on_end(self, training: Training, finished: bool) -> None:
        """After the last step, or when the training was asked to stop (``finished`` is then false)."""


class Step(Protocol):
    """One forward pass: a batch and the number of the optimiser step it belongs to."""

    def __call__(self, batch: Any, step: int) -> StepOutput: ...


@dataclass
class Training:
    """Everything the loop needs, put together by :mod:`lisa.build`."""

    accelerator: Accelerator
    step: Step
    batches: Callable[[int], Iterable[Any]]  # from the number of the first micro-step
    modules: Sequence[nn.Module]
    optimizer: Any
    scheduler: Any
    total_steps: int
    clip: Mapping[str, ClipGroup]
    callbacks: Sequence[Callback] = ()
    state: LoopState = field(default_factory=LoopState)
    stop: StopRequest = field(default_factory=StopRequest)
    max_skipped: int = 20

    def notify(self, event: str, *args: Any) -> None:
        """Call ``event`` on every callback, in order."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)


def run(training: Training) -> bool:
    """Train until ``total_steps``; true if it got there, false if it was asked to stop before.

    Raises:
        TrainingStopped: the loss or the gradient was not finite ``max_skipped`` steps in a row (a checkpoint is written
            first, by the callbacks' ``on_end``).
    """
    t, state = training, training.state
    with t.stop.listening():
        t.notify("on_start")
        running: dict[str, Tensor] = {}
        clock = time.monotonic()
        for batch in t.batches(state.micro_step) if state.step < t.total_steps else ():
            with t.accelerator.accumulate(*t.modules):
                output = t.step(batch, state.step)
                t.accelerator.backward(output.loss)
                _add(running, output)
                state.micro_step += 1
                if t.accelerator.sync_gradients:
                    _optimise(t, running)
            if not t.accelerator.sync_gradients:
                continue
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            t.notify("after_step", _means(running))
            running = {}
            if state.skipped_in_a_row >= t.max_skipped or state.step >= t.total_steps or t.stop.requested:
                break
            clock = time.monotonic()  # what callbacks take (sampling, evaluation) is not training time
        finished = state.step >= t.total_steps
        t.notify("on_end", finished)
    if state.skipped_in_a_row >= t.max_skipped:
        raise TrainingStopped(
            f"the loss or its gradient was not finite {t.max_skipped} steps in a row (last at step {state.step})",
            "A checkpoint was written. Likely causes: a learning rate that is too high, fp16 without loss scaling (use "
            "bf16 or no mixed precision), damaged weights, or images outside 0..255",
        )
    return finished


def _optimise(t: Training, running: dict[str, Tensor]) -> None:
    """Clip each group apart and step; a step that is not finite is thrown away and counted."""
    norms = {name: t.accelerator.clip_grad_norm_(group.parameters, group.max_norm) for name, group in t.clip.items()}
    running.update({f"grad_norm/{name}": norm.detach() for name, norm in norms.items() if norm is not None})
    watched = [running["loss"]] if t.accelerator.scaler is not None else [running["loss"], *norms.values()]
    bad = ~torch.isfinite(torch.stack([value.detach().float().reshape(()) for value in watched])).all()
    bad = t.accelerator.reduce(bad.float(), reduction="sum")  # every process decides the same
    t.state.step += 1
    if bool(bad):
        t.state.skipped += 1
        t.state.skipped_in_a_row += 1
    else:
        t.state.skipped_in_a_row = 0
        t.optimizer.step()
    t.scheduler.step()
    t.optimizer.zero_grad()


def _add(running: dict[str, Tensor], output: StepOutput) -> None:
    running["micro_steps"] = running.get("micro_steps", torch.zeros(())) + 1
    for name, value in {"loss": output.loss, **output.logs}.items():
        running[name] = running[name] + value.detach() if name in running else value.detach().clone()


def _means(running: dict[str, Tensor]) -> dict[str, Tensor]:
    count = running.pop("micro_steps")
    return {
        name: value if name.startswith("grad_norm/") else value / count.to(value.device)
        for name, value in running.items()
    }
