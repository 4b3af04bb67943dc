"""How much sooner one arm learns than another: plateau, steps to a level, speed-up, onset.

The convention is REPA's (Yu et al., arXiv 2410.06940: training needed to reach the baseline's quality), made robust:
levels are shares of a plateau that the baseline must have reached, and seeds are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lisa.common.errors import LisaError
from lisa.common.intervals import FloatArray, Interval, t_interval

#: Shares of the baseline's plateau to which the steps are counted; the first is the one that is quoted.
LEVELS = (0.95, 0.8, 0.5)
#: Readings in the running mean.
WINDOW = 3
#: A curve that gains or loses less than this share of its plateau in its last fifth has reached it.
FLAT = 0.01
#: Onset: the condition gap is above this share of the plateau, for so many readings in a row.
ONSET_SHARE, ONSET_STAYS = 0.1, 3

Bound = Literal["", "at most", "at least", "unknown"]


@dataclass(frozen=True)
class Plateau:
    """What a curve comes to.

    Attributes:
        level: mean of the smoothed curve over its last fifth.
        growth: what it gains over that fifth (by the straight line that fits best), as a share of ``level``.
    """

    level: float
    growth: float

    @property
    def reached(self) -> bool:
        """Whether the curve is flat at its end. A level that is not above zero is no plateau of anything."""
        return self.level > 0 and abs(self.growth) < FLAT


@dataclass(frozen=True)
class Needed:
    """Steps (or seconds) that one run needed to reach a level.

    Attributes:
        amount: infinite where it never did.
        seen: how far the run went.
    """

    amount: float
    seen: float

    @property
    def never(self) -> bool:
        """Whether the level was not reached as far as the run went."""
        return math.isinf(self.amount)

    @property
    def least(self) -> float:
        """The amount, or the least that it can be."""
        return self.seen if self.never else self.amount


@dataclass(frozen=True)
class Bounded:
    """A value over seeds with its interval, and what it is where some seeds never got there.

    Attributes:
        interval: an end that is not known is infinite; a value that is not known is NaN.
        bound: empty: the value is what it says; otherwise the truth is ``at most`` or ``at least`` that, or
            ``unknown``.
        per_seed: what went into it, in the order of the seeds; NaN where a seed tells nothing.
    """

    interval: Interval
    bound: Bound
    per_seed: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """``{"value", "low", "high", "bound", "per_seed"}``."""
        seeds = [value if math.isfinite(value) else None for value in self.per_seed]
        return {**self.interval.to_json(), "bound": self.bound or None, "per_seed": seeds}


_UNKNOWN = Interval(math.nan, -math.inf, math.inf)


def smooth(values: ArrayLike, window: int = WINDOW) -> FloatArray:
    """Centred running mean (N,). Near the ends the window shrinks on both sides, so straight lines stay as they are."""
    array = np.asarray(values, dtype=np.float64)
    halves = np.minimum(np.minimum(np.arange(len(array)), np.arange(len(array))[::-1]), window // 2)
    return np.array([array[i - half : i + half + 1].mean() for i, half in enumerate(halves)])


def plateau(steps: ArrayLike, values: ArrayLike) -> Plateau:
    """The plateau of a curve (N,) read at ``steps`` (N,), increasing; its last fifth has at least three readings.

    Raises:
        LisaError: there are fewer than two readings.
    """
    at, smoothed = np.asarray(steps, dtype=np.float64), smooth(values)
    if len(at) < 2:
        raise LisaError(f"a curve of {len(at)} readings has no plateau", "Lower log.held_out_every, or train longer")
    last = (at >= 0.8 * at[-1]) | (np.arange(len(at)) >= len(at) - 3)
    level = float(smoothed[last].mean())
    slope = float(np.polyfit(at[last], smoothed[last], 1)[0])
    return Plateau(level, slope * 0.2 * float(at[-1]) / level if level else math.inf)


def steps_to(steps: ArrayLike, values: ArrayLike, level: float) -> float:
    """The first step at which the smoothed curve is at ``level``, between readings by the straight line; else infinite.

    A curve that begins above the level (a warm start) is taken to need one interval of readings; if it ended before
    the second one, it tells nothing, and is taken not to have got there.
    """
    at, smoothed = np.asarray(steps, dtype=np.float64), smooth(values)
    above = smoothed >= level
    if not above.any():
        return math.inf
    first = int(above.argmax())
    if first == 0:
        return float(at[1]) if len(at) > 1 else math.inf
    low, high = smoothed[first - 1], smoothed[first]
    return float(at[first - 1] + (level - low) / (high - low) * (at[first] - at[first - 1]))


def onset(steps: ArrayLike, gaps: ArrayLike, threshold: float, stays: int = ONSET_STAYS) -> float:
    """The first of ``stays`` readings in a row at or above ``threshold``: its step; infinite where there is none."""
    at, above = np.asarray(steps, dtype=np.float64), np.asarray(gaps, dtype=np.float64) >= threshold
    for first in range(len(at) - stays + 1):
        if above[first : first + stays].all():
            return float(at[first])
    return math.inf


def speed_up(baseline: Sequence[Needed], arm: Sequence[Needed]) -> Bounded:
    """How many times sooner ``arm`` got there, paired by seed: mean log-ratio with its t-interval.

    Where a run never reached the level, it stands with all that it was trained for, the least that it can have needed:

    - the arm never did in some seeds: the truth is *at most* the value;
    - the baseline never did: the truth is *at least* the value;
    - both kinds among the seeds: nothing but the value, marked *unknown*. A seed in which neither did tells nothing: it
      is left out, and the value is *unknown*, too.

    In all of these neither end of the interval is known: with the stand-in seeds spread less, or more, than they do.

    Raises:
        LisaError: different numbers of seeds, or none.
    """
    if len(baseline) != len(arm) or not arm:
        raise LisaError(f"{len(baseline)} seeds of the baseline and {len(arm)} of the arm", "Give the same seeds")
    pairs = list(zip(baseline, arm, strict=True))
    logs = [math.nan if b.never and a.never else math.log(b.least / a.least) for b, a in pairs]
    known = [value for value in logs if not math.isnan(value)]
    kinds = {(b.never, a.never) for b, a in pairs}
    bound: Bound = ""
    if (True, True) in kinds or {(True, False), (False, True)} <= kinds:
        bound = "unknown"
    elif kinds & {(True, False), (False, True)}:
        bound = "at least" if (True, False) in kinds else "at most"
    return _bounded(mean_ratio(known) if known else _UNKNOWN, bound, [math.exp(value) for value in logs])


def mean_needed(amounts: Sequence[Needed]) -> Bounded:
    """Mean over seeds with its t-interval; where some never got there, the mean is *at least* the value.

    Raises:
        LisaError: there is none.
    """
    interval = t_interval([each.least for each in amounts])
    nobody = all(each.never for each in amounts)
    bound: Bound = "at least" if any(each.never for each in amounts) else ""
    per_seed = [math.nan if each.never else each.amount for each in amounts]
    return _bounded(_UNKNOWN if nobody else interval, bound, per_seed)


def mean_ratio(logs: Sequence[float]) -> Interval:
    """Geometric mean of ratios with its t-interval, from their logarithms; of a single one both ends are infinite.

    Raises:
        LisaError: there is none.
    """
    found = t_interval(logs)
    value, low, high = (math.exp(min(end, 700.0)) for end in (found.value, found.low, found.high))
    return Interval(value, low, high) if len(logs) > 1 else Interval(value, -math.inf, math.inf)


def _bounded(interval: Interval, bound: Bound, per_seed: Sequence[float]) -> Bounded:
    if bound:  # what stands in for a seed that never got there is no reading: its spread tells nothing
        interval = replace(interval, low=-math.inf, high=math.inf)
    return Bounded(interval, bound, tuple(per_seed))
