"""Whether an existing side network belongs to a main network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lisa.common.errors import LisaError
from lisa.mains.base import MainNetwork
from lisa.pairs.base import PairSpec
from lisa.sides.base import SideNetwork, SideOptions


def check_same(main: MainNetwork, side: SideNetwork, names: Sequence[str]) -> None:
    """Refuse a side network whose configuration differs from the main network's in one of ``names``.

    Raises:
        LisaError: it does; the message names both values.
    """
    ours, theirs = main.network.config, side.module.config
    for name in names:
        a, b = getattr(ours, name, None), getattr(theirs, name, None)
        if _plain(a) != _plain(b):
            raise misfit(main, f"its {name} is {b}, the main network's is {a}")


def misfit(main: MainNetwork, why: str) -> LisaError:
    """The error of a side network that does not fit."""
    return LisaError(
        f"the side network does not fit {main.source!r}: {why}",
        "Start from a side network that was trained for this main network, or leave side.init empty",
    )


def refuse_stacking(
    options: SideOptions, kind: str, reads: str = "the latent of one picture", instead: str = ""
) -> None:
    """Refuse several conditions at once for a side network that reads one.

    Args:
        options: what was asked for.
        kind: class of the side network.
        reads: what it reads.
        instead: what else can be done about it.

    Raises:
        LisaError: ``options`` ask for more than one.
    """
    if options.conditions != 1:
        raise LisaError(
            f"{options.conditions} stacked conditions: a {kind} reads {reads}",
            f"Train one side network per condition{instead}",
        )


def check_conditions(spec: PairSpec, side: SideNetwork, count: int) -> None:
    """Refuse a side network that reads another number of condition pictures than ``count``.

    Raises:
        LisaError: it does, or the pipeline of its kind takes no stacked pictures.
    """
    reads = side.condition_channels // 3
    if reads != count:
        raise LisaError(
            f"the side network reads {reads} condition picture{'s' if reads > 1 else ''} at once, {count} given",
            "Give as many conditions as it was trained for, in the same order",
        )
    if count > 1 and not spec.call.takes_tensors:
        raise LisaError(
            f"{count} conditions stacked: {spec.pipeline_name} takes one picture per side network",
            "Train one side network per condition",
        )


def refuse_depth(options: SideOptions, kind: str, why: str) -> None:
    """Refuse a number of blocks where it is not free.

    Raises:
        LisaError: ``options`` ask for one.
    """
    if options.depth is not None:
        raise LisaError(f"side.depth is {options.depth}, but a {kind}'s is not free: {why}", "Leave side.depth empty")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
