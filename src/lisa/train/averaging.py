"""The exponential average of the weights, in place of the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def averaged_weights(module: nn.Module, ema: Any | None) -> Iterator[None]:
    """Inside, ``module`` is in eval mode and has the weights of ``ema`` (diffusers' ``EMAModel``; None: its own)."""
    training = module.training
    module.eval()
    if ema is not None:
        ema.store(module.parameters())
        ema.copy_to(module.parameters())
    try:
        yield
    finally:
        if ema is not None:
            ema.restore(module.parameters())
        module.train(training)
