"""Making a side network out of the main network where diffusers has no constructor for it, or a forgetful one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError


def common_configuration(kind: Any, network: Any, **own: Any) -> dict[str, Any]:
    """What ``kind``'s constructor takes and ``network``'s configuration tells; ``own`` replaces or adds."""
    accepted = inspect.signature(kind.__init__).parameters
    return {name: network.config[name] for name in accepted if name in network.config} | own


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor], new: Iterable[str]) -> None:
    """Load what ``weights`` has for ``module``; all but the parts named in ``new`` must be there.

    Raises:
        LisaError: a parameter is left without a counterpart, so that it would silently start at random, or the shapes
            of one differ.
    """
    begins = tuple(f"{name}." for name in new)
    known = {name: weights[name] for name in module.state_dict() if name in weights}
    lost = [name for name in module.state_dict() if name not in known and not f"{name}.".startswith(begins)]
    if lost:
        raise LisaError(
            f"the main network has no weights for {len(lost)} parts of a {type(module).__name__}: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}",
            "Use a main network of the kind it was made for",
        )
    try:
        module.load_state_dict(known, strict=False)
    except RuntimeError as error:
        raise LisaError(
            f"the main network's weights do not fit a {type(module).__name__}: {str(error).splitlines()[-1].strip()}",
            "Use a main network of the kind it was made for",
        ) from error
