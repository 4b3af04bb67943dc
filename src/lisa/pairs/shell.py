"""Another shell around the parts of a module, for pipelines that hang something into what they are given."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any


def shell_of(module: Any) -> Any:
    """A module of the same class around the very same submodules and parameters.

    What is set on the one is not seen by the other. A ``forward`` that was bound to ``module`` itself, as accelerate
    leaves it there after mixed precision, is bound to the shell.
    """
    shell = copy.copy(module)
    shell._modules, shell._parameters = dict(module._modules), dict(module._parameters)
    own = module.__dict__.get("forward")
    if isinstance(own, MethodType) and own.__self__ is module:
        shell.__dict__["forward"] = MethodType(own.__func__, shell)
    return shell
