"""The alignment weight over the steps of training.

Alignment helps early, and once the side network can read the condition it has done its job (after HASTE,
arXiv 2505.16792). A schedule that is ``finished`` is so for good: the trainer stops computing the prior.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from lisa.common.errors import LisaError, choose
from lisa.core.aligner import REFERENCE_WEIGHT, check_weight


class WeightSchedule(ABC):
    """Weight by step, and whether the alignment has finished for good.

    ``weight(step)`` is to be asked once per step; ``observe`` is told every held-out reading, with the same numbers on
    every process. ``state_dict`` and ``load_state_dict`` make it part of a checkpoint.
    """

    def __init__(self, weight: float) -> None:
        self._start = check_weight(weight)
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether the weight is 0 for good."""
        return self._finished

    def weight(self, step: int) -> float:
        """The alignment weight of ``step`` (from 0)."""
        return 0.0 if self._finished else self._weight(step)

    @abstractmethod
    def _weight(self, step: int) -> float:
        """The weight while not finished."""

    def observe(self, step: int, onset: bool, r2_gap: float) -> None:
        """Hear a held-out reading: whether control has set in by now, and the decoder's R2 gap. NaN: not measured."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        return {"finished": self._finished}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._finished = bool(state["finished"])


class ConstantSchedule(WeightSchedule):
    """The reference: the same weight at every step."""

    def _weight(self, step: int) -> float:
        return self._start


class CosineSchedule(WeightSchedule):
    """From the full weight at step 0 down a half cosine to 0 at ``total_steps``, where it is finished."""

    def __init__(self, weight: float, total_steps: int) -> None:
        super().__init__(weight)
        self._total = total_steps

    def _weight(self, step: int) -> float:
        if step >= self._total:
            self._finished = True
            return 0.0
        return self._start * 0.5 * (1 + math.cos(math.pi * max(step, 0) / self._total))


class UntilDoneSchedule(WeightSchedule):
    """Full weight until control has set in *and* the decoder's held-out R2 gap has stopped rising; then off for good.

    Stopped rising: the gap has not passed its best since the onset by more than ``min_delta`` in ``patience`` readings
    running. Readings before the onset never count: a decoder that stalls while nothing is controlled needs more time.
    """

    def __init__(self, weight: float, patience: int = 3, min_delta: float = 0.002) -> None:
        super().__init__(weight)
        if patience < 1 or not min_delta >= 0:
            raise LisaError(
                f"the schedule 'until-done' with patience={patience} and min_delta={min_delta}",
                "Give a patience of 1 or more readings and a min_delta of 0 or more",
            )
        self._patience, self._min_delta = patience, min_delta
        self._best: float | None = None
        self._waited = 0
        self._last_step = -1

    def _weight(self, step: int) -> float:
        return self._start

    def observe(self, step: int, onset: bool, r2_gap: float) -> None:
        """Hear a held-out reading. A step heard before (after a restart) is not counted again."""
        if step <= self._last_step or math.isnan(r2_gap):
            return
        self._last_step = step
        if self._finished or not onset:
            return
        if self._best is None or r2_gap > self._best + self._min_delta:
            self._best, self._waited = r2_gap, 0
            return
        self._waited += 1
        self._finished = self._waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        own = {"best": self._best, "waited": self._waited, "last_step": self._last_step}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self._best, self._waited, self._last_step = state["best"], state["waited"], state["last_step"]


def _cosine(weight: float, total_steps: int | None, **options: Any) -> WeightSchedule:
    if total_steps is None or total_steps < 1:
        raise LisaError(f"the schedule 'cosine' over {total_steps} steps", "Give total_steps, at least 1")
    return CosineSchedule(weight, total_steps, **options)


_SCHEDULES: dict[str, Callable[..., WeightSchedule]] = {
    "constant": lambda weight, total_steps, **options: ConstantSchedule(weight, **options),
    "cosine": _cosine,
    "until-done": lambda weight, total_steps, **options: UntilDoneSchedule(weight, **options),
}


def schedule_names() -> tuple[str, ...]:
    """Names that :func:`make_schedule` takes."""
    return tuple(_SCHEDULES)


def make_schedule(
    name: str = "constant", weight: float = REFERENCE_WEIGHT, total_steps: int | None = None, **options: Any
) -> WeightSchedule:
    """The schedule of that name.

    Args:
        name: ``constant`` (the reference), ``cosine`` or ``until-done``.
        weight: the full weight.
        total_steps: where ``cosine`` reaches 0.
        options: of ``until-done``: ``patience`` (3 readings), ``min_delta`` (0.002).

    Raises:
        LisaError: unknown name, option or an impossible number.
    """
    choose("schedule", name, _SCHEDULES)
    try:
        return _SCHEDULES[name](weight, total_steps, **options)
    except TypeError as error:
        raise LisaError(
            f"the schedule {name!r} does not take the options {sorted(options)}",
            "patience and min_delta belong to 'until-done'; the others take none",
        ) from error
