"""The registered pairs. Other packages add theirs through the entry point group ``lisa.pairs``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

from lisa.common.errors import LisaError, choose
from lisa.common.model_folders import first_line
from lisa.pairs.base import PairSpec

GROUP = "lisa.pairs"
_PAIRS: dict[str, PairSpec] = {}


def register(spec: PairSpec) -> PairSpec:
    """Make a kind of pair known under its name.

    Raises:
        LisaError: another one has that name.
    """
    if _PAIRS.setdefault(spec.name, spec) is not spec:
        raise LisaError(f"there is a kind of pair {spec.name!r} already", "Give the new one another name")
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
    """An entry point names a function that takes :func:`register`.

    Raises:
        LisaError: a package offers pairs but cannot be loaded; the message names it.
    """
    for point in entry_points(group=GROUP):
        try:
            add: Callable[[Callable[[PairSpec], PairSpec]], None] = point.load()
            add(register)
        except Exception as error:  # whatever another package's import may raise
            owner = point.dist.name if point.dist is not None else point.value
            raise LisaError(
                f"the package {owner!r} offers pairs to LISA, but {point.value} fails: {first_line(error)}",
                "Update it or uninstall it",
            ) from error
