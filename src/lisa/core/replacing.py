"""What an instance of a module does, changed for a while; and whether compiled code runs in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """``value`` as the attribute ``name`` of this one instance while the block runs.

    After it, the instance has what it had of its own (offloading sets a ``forward``), or again its class's.
    """
    had, own = name in module.__dict__, module.__dict__.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if had:
            setattr(module, name, own)
        else:
            delattr(module, name)


def is_compiled(module: nn.Module) -> bool:
    """By ``torch.compile(module)``, ``module.compile()`` or ``module.forward = torch.compile(module.forward)``."""
    return (
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    )
