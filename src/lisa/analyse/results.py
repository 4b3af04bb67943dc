"""From readings to what is written down: by layer and level, means over them, and one run against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lisa.analyse.readings import Reading, differences, figures
from lisa.analyse.similarity import cka, cka_interval

#: Layer name -> its readings, in order of the levels.
Readings = Mapping[str, Sequence[Reading]]


def tabulate(ours: Readings, theirs: Readings | None, levels: Sequence[float], seed: int) -> dict[str, Any]:
    """``by_level``, ``by_layer`` (means over the levels) and ``overall`` (over layers and levels), with intervals.

    Each row has ``run``; with ``theirs`` also ``against``, ``difference`` (run minus against) and ``cka``.

    Args:
        ours: readings of the run.
        theirs: of the run that it is held against, for the same samples; its layers are those of ``ours``.
        levels: times of the noise levels, 0 to 1000.
        seed: of the intervals.
    """

    def row(chosen: Sequence[Reading], others: Sequence[Reading] | None) -> dict[str, Any]:
        found: dict[str, Any] = {"run": figures(chosen, seed)}
        if others is not None:
            found["against"] = figures(others, seed)
            found["difference"] = differences(chosen, others, seed)
        return found

    by_level, by_layer = [], []
    for layer, readings in ours.items():
        rivals = None if theirs is None else theirs[layer]
        for place, level in enumerate(levels):
            others = None if rivals is None else [rivals[place]]
            found = {"layer": layer, "level": level, "penalties": dict(readings[place].penalties)}
            found |= row([readings[place]], others)
            if others is not None:
                found["cka"] = cka_interval(readings[place].gram, others[0].gram, seed=seed)
            by_level.append(found)
        by_layer.append({"layer": layer, **row(readings, rivals)})
        if rivals is not None:
            pairs = zip(readings, rivals, strict=True)
            by_layer[-1]["cka"] = float(np.mean([cka(one.gram, two.gram) for one, two in pairs]))
    every = [reading for readings in ours.values() for reading in readings]
    rest = None if theirs is None else [reading for layer in ours for reading in theirs[layer]]
    return {"overall": row(every, rest), "by_layer": by_layer, "by_level": by_level}


def between_layers(ours: Readings, theirs: Readings | None) -> list[list[float]]:
    """CKA of each layer of the run with each of the other (of itself, without one), mean over the noise levels."""
    others = ours if theirs is None else theirs

    def mean(one: Sequence[Reading], two: Sequence[Reading]) -> float:
        return float(np.mean([cka(a.gram, b.gram) for a, b in zip(one, two, strict=True)]))

    return [[mean(readings, others[other]) for other in ours] for readings in ours.values()]
