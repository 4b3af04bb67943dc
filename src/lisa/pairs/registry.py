"""The registered pairs. Other packages add theirs through the entry point group ``lisa.pairs``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

from lisa.common.errors import choose
from lisa.pairs.base import PairSpec

_PAIRS: dict[str, PairSpec] = {}


def register(spec: PairSpec) -> PairSpec:
    """Make a kind of pair known under its name."""
    _PAIRS[spec.name] = spec
    return spec


def pair_spec(name: str) -> PairSpec:
    """The registered kind of pair ``name``.

    Raises:
        LisaError: there is none; the message lists what there is.
    """
    _find_others()
    return _PAIRS[choose("pair", name, _PAIRS)]


def pair_names() -> list[str]:
    """The names of all registered pairs."""
    _find_others()
    return list(_PAIRS)


@cache
def _find_others() -> None:
    """An entry point names a function that takes :func:`register`."""
    for point in entry_points(group="lisa.pairs"):
        add: Callable[[Callable[[PairSpec], PairSpec]], None] = point.load()
        add(register)
