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

    def on_error(self, training: Training) -> None:
        """What happens beside the training failed after a step; the training's own state is that of the step."""

    def on_exit(self, training: Training) -> None:
        """Whatever happened, an error included: let go of what is held."""


class Step(Protocol):
    """One forward pass: a batch and the number of the optimiser step it belongs to."""

    def __call__(self, batch: Any, step: int) -> StepOutput:
        """The loss of ``batch`` at optimiser step ``step``."""


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
        try:
            t.notify("on_start")
            _loop(t)
            finished = state.step >= t.total_steps
            t.notify("on_end", finished)
        finally:
            t.notify("on_exit")
    if state.skipped_in_a_row >= t.max_skipped:
        raise TrainingStopped(
            f"the loss or its gradient was not finite {state.skipped_in_a_row} steps in a row (last: {state.step})",
            "A checkpoint was written; its weights are those of the last good step. Likely causes: too high a learning "
            "rate, fp16 (use bf16 or no mixed precision), damaged weights of the main network, damaged images",
        )
    return finished


def _loop(t: Training) -> None:
    state = t.state
    running: dict[str, Tensor] = {}
    clock = time.monotonic()
    for batch in t.batches(state.micro_step) if state.step < t.total_steps else ():
        with t.accelerator.accumulate(*t.modules):
            output = t.step(batch, state.step)
            t.accelerator.backward(output.loss)
            _add(running, output)
            state.micro_step += 1
            if not t.accelerator.sync_gradients:
                continue
            _optimise(t, running)
        state.seconds += time.monotonic() - clock
        try:
            t.notify("after_step", _means(running))
        except Exception:  # memory that does not suffice for samples, a tracker that is gone
            t.notify("on_error")
            raise
        running = {}
        if state.skipped_in_a_row >= t.max_skipped or state.step >= t.total_steps or _asked_to_stop(t):
            return
        clock = time.monotonic()  # what callbacks take (sampling, evaluation) is not training time


def _asked_to_stop(t: Training) -> bool:
    """Whether any process was: a signal reaches them at different moments, and they must stop after the same step."""
    if t.accelerator.num_processes == 1:
        return t.stop.requested
    asked = torch.tensor(float(t.stop.requested), device=t.accelerator.device)
    return bool(t.accelerator.reduce(asked, reduction="sum") > 0)


def _optimise(t: Training, running: dict[str, Tensor]) -> None:
    """Clip each group apart and step; a step that is not finite is thrown away and counted."""
    norms = _clip(t)
    running.update({f"grad_norm/{name}": norm.detach() for name, norm in norms.items()})
    watched = [running["loss"], *norms.values()]
    flat = [value.detach().float().reshape(()).to(t.accelerator.device) for value in watched]
    bad = (~torch.isfinite(torch.stack(flat))).any().float()
    skip = bool(t.accelerator.reduce(bad, reduction="sum") > 0)  # every process decides the same
    # A loss scaler (fp16) leaves steps whose gradients overflowed out by itself, and must hear of them to scale down.
    # Not accelerate's optimizer_step_was_skipped: a fused optimiser leaves them out where accelerate cannot see it.
    if t.accelerator.scaler is not None or not skip:
        t.optimizer.step()
    t.state.step += 1
    t.state.skipped += skip
    t.state.skipped_in_a_row = t.state.skipped_in_a_row + 1 if skip else 0
    t.scheduler.step()
    t.optimizer.zero_grad()


def _clip(t: Training) -> dict[str, Tensor]:
    """Clip the gradients of each group to its own norm; the norms before that."""
    if t.accelerator.scaler is None:
        clip = t.accelerator.clip_grad_norm_
    else:
        t.accelerator.unscale_gradients()  # accelerate's own clipping unscales at every call, which fails at the second
        clip = torch.nn.utils.clip_grad_norm_
    norms = {name: clip(group.parameters, group.max_norm) for name, group in t.clip.items()}
    return {name: norm for name, norm in norms.items() if norm is not None}


def _add(running: dict[str, Tensor], output: StepOutput) -> None:
    running["micro_steps"] = running.get("micro_steps", torch.zeros(())) + 1
    for name, value in {"loss": output.loss, **output.logs}.items():
        running[name] = running[name] + value.detach() if name in running else value.detach().clone()


def _means(running: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the micro-steps; gradient norms are of the whole step already."""
    count = running.pop("micro_steps")
    return {
        name: value if name.startswith("grad_norm/") else value / count.to(value.device)
        for name, value in running.items()
    }
