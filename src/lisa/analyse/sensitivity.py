"""How much of a feature's variance is owed to each input: Sobol indices by pick and freeze.

For independent inputs the variance of f splits into a part for each input alone, for each pair, and so on (analysis of
variance; Sobol, Math. Comp. Simul. 55, 2001). The **first-order index** of an input is its part alone, the **total
index** its part with all in which it meets others, both over the whole variance. For features of many numbers the
variance is the trace of the covariance (Lamboni, Monod and Makowski 2011; Gamboa et al. 2014), which does not change
when the feature is rotated.

Each block crosses two independent values of each of k inputs: 2^k features. With D(u) half the mean squared distance
between features that differ in exactly the inputs u, over a block of independent draws

    E D(all) = Var f        E D(i) = Var f * total(i)        E D(all but i) = Var f * (1 - first(i))

(Jansen, Comp. Phys. Comm. 117, 1999). All three are unbiased, however few blocks there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError

ALL = "all"


def distances(features: NDArray[np.floating], factors: Sequence[str]) -> dict[str, float]:
    """``D`` of one block, by name: ``all``, each factor, and ``not FACTOR`` (every input but that one).

    Args:
        features: (2, ..., 2, F): one axis of two values per factor, in order, then the feature's numbers.
        factors: their names.

    Raises:
        LisaError: another shape.
    """
    axes = tuple(range(len(factors)))
    if features.shape[:-1] != (2,) * len(factors):
        raise LisaError(f"a block of shape {features.shape} for {len(factors)} factors", "Give two values per factor")

    def distance(changed: tuple[int, ...]) -> float:
        difference = features - np.flip(features, changed)
        # Rounded to single precision at most once, summed in double.
        return float(np.square(difference, dtype=np.float64).sum() / 2 ** (len(factors) + 1))

    found = {ALL: distance(axes)}
    for axis, name in enumerate(factors):
        found[name] = distance((axis,))
        found[f"not {name}"] = distance(tuple(other for other in axes if other != axis))
    return found
