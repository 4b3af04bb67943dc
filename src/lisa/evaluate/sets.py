"""Several pictures per sample, as ControlNet++'s protocol has them: sets, each with one picture of every sample.

A figure is the mean over the sets of what it is of each. Its interval is over samples: a resample draws the same ones
in every set, since pictures of one sample are too much alike to count as so many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lisa.common.errors import LisaError
from lisa.data.samples import ByteArray, Sample


def split(images: Sequence[ByteArray], samples: Sequence[Sample], sets: int = 1) -> list[Sequence[ByteArray]]:
    """Pictures, one set after the other, as one list per set.

    Raises:
        LisaError: there is no sample, or not as many pictures as sets have.
    """
    count = len(samples)
    if not samples or len(images) != sets * count:
        of_sets = f" in {sets} sets" if sets > 1 else ""
        raise LisaError(f"{len(images)} pictures for {count} samples{of_sets}: there must be as many, and at least one")
    return [images[start : start + count] for start in range(0, len(images), count)]


def check_drawn_apart(sets: Sequence[Sequence[ByteArray]], names: Sequence[str]) -> None:
    """Refuse two sets that hold the very same pictures: their mean would be of fewer than it says.

    Args:
        sets: see :func:`split`.
        names: of the sets, for the message.
    """
    for later in range(1, len(sets)):
        for earlier in range(later):
            if all(np.array_equal(one, two) for one, two in zip(sets[earlier], sets[later], strict=True)):
                raise LisaError(
                    f"{names[earlier]!r} and {names[later]!r} hold the same pictures",
                    "Generate each with seeds of its own, as lisa generate --per-condition does",
                )


def mean_scores(of_sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The scores of one sample: for each metric the mean over sets."""
    if len(of_sets) == 1:
        return dict(of_sets[0])
    return {name: float(np.mean([scores[name] for scores in of_sets])) for name in of_sets[0]}
