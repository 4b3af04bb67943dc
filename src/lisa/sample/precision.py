"""Networks of different types in one pipeline: each in its own, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lisa.core.precision import telling_parameter
from lisa.core.replacing import replaced


@contextmanager
def in_own_precision(pipeline: Any, side: str) -> Iterator[None]:
    """The types of a training while the block runs, in which pipelines of diffusers expect a single one.

    The frozen main network and the text encoders run outside autocast, in what they are stored in; the side network
    under the autocast there is, and what it gives is cast to the main network's type. The autoencoder runs outside
    autocast in its own type: SDXL's overflows in float16.

    Args:
        pipeline: of diffusers.
        side: the name of its side network.
    """
    transformer = getattr(pipeline, "transformer", None)
    network = transformer if transformer is not None else pipeline.unet
    like = _weight(network)
    device, control, vae = like.device.type, getattr(pipeline, side), pipeline.vae
    autocast, half = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def controlled(forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **options: Any) -> Any:
            with torch.autocast(device, dtype=half, enabled=autocast):
                if not autocast:
                    args, options = _cast((args, options), _weight(control).dtype)
                return _cast(forward(*args, **options), like.dtype)

        return run

    def coded(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any, **options: Any) -> Any:
            args, options = _cast((args, options), _weight(vae).dtype)
            return method(*args, **options)

        return run

    with ExitStack() as stack:
        # Where both are in one model, it is of the main network's type.
        if control is not network and (autocast or _weight(control).dtype != like.dtype):
            stack.enter_context(replaced(control, "forward", controlled(control.forward)))
        if _weight(vae).dtype != like.dtype:
            for name in ("encode", "decode"):
                stack.enter_context(replaced(vae, name, coded(getattr(vae, name))))
        stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _weight(module: nn.Module) -> Tensor:
    """A parameter that tells the device and the floating-point type."""
    parameter = telling_parameter(module)
    assert parameter is not None, "networks of pipelines have weights"
    return parameter


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """``values``, whatever they are nested in, with every floating-point tensor in ``dtype``."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, cast, values)
