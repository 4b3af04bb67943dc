"""What every metric asks first: are the two arrays of one size?"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from lisa.common.errors import LisaError


def require_same_shape(truth: NDArray[Any], made: NDArray[Any]) -> None:
    """Raise LisaError unless the arrays have the same shape and are not empty."""
    if truth.shape != made.shape or truth.size == 0:
        raise LisaError(f"the truth is {truth.shape}, what was made {made.shape}: they must be equal and not empty")
