"""The exponential average of the weights, in place of the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What an average is kept of: the average of frozen weights would be a second copy of them."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def averaged_weights(module: nn.Module, ema: Any | None) -> Iterator[None]:
    """Inside, ``module`` is in eval mode and has the weights of ``ema`` (None: its own).

    Args:
        module: that is trained.
        ema: diffusers' ``EMAModel`` of its :func:`trained_parameters`.
    """
    training, parameters = module.training, trained_parameters(module)
    module.eval()
    if ema is not None:
        ema.store(parameters)
        ema.copy_to(parameters)
    try:
        yield
    finally:
        if ema is not None:
            ema.restore(parameters)
        module.train(training)
