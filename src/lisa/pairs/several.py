"""Several side networks of one kind beside one main network, in the containers that diffusers' pipelines have for them.

What each adds to the main network is scaled by its weight, and the sum enters: where conditions are independent given
x_t, the score of both is the prior's plus the sum of their likelihood scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lisa.common.errors import LisaError
from lisa.mains.base import MainNetwork
from lisa.pairs.base import PairSpec
from lisa.pairs.registry import pair_names, pair_spec
from lisa.sides.base import SideNetwork


def check_container(spec: PairSpec) -> None:
    """Refuse a kind of pair whose pipeline takes one side network only.

    Raises:
        LisaError: it does; the message names the kinds that take several.
    """
    if spec.call.container is None:
        raise LisaError(
            f"several side networks: diffusers' {spec.pipeline_name} takes one",
            f"{spec.name} cannot; use one side network, or one of these kinds",
            [name for name in pair_names() if pair_spec(name).call.container is not None],
        )


def joint_pipeline(spec: PairSpec, main: MainNetwork, sides: Sequence[SideNetwork]) -> Any:
    """The diffusers pipeline around a main network and one or several side networks that fit it.

    Raises:
        LisaError: there are several, and no container for them, or their configurations differ in what it goes by.
    """
    if len(sides) == 1:
        return spec.pipeline(main, sides[0].module)
    check_container(spec)
    for name in spec.call.agree:
        values = [getattr(side.module.config, name, None) for side in sides]
        if any(value != values[0] for value in values):
            raise LisaError(
                f"the side networks cannot be used together: {name} is {', '.join(map(str, values))}",
                f"diffusers' {spec.call.container} takes side networks of one configuration",
            )
    import diffusers.models

    container = getattr(diffusers.models, str(spec.call.container))
    return spec.pipeline(main, container([side.module for side in sides]))
