"""Low-rank training of a side network that is a copy of the main network (a control LoRA), through peft.

The copy stays frozen. What is trained are adapters (LoRA, arXiv 2106.09685) on its layers and, in full, what the copy
does not have from the main network: the zero modules and what reads the condition. What is given away is the copy with
the adapters merged into it: a plain diffusers model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError, nearest

if TYPE_CHECKING:
    from lisa.sides.base import SideNetwork

_ADAPTER = "default"  # peft's own name of the only adapter


def add_low_rank(
    side: SideNetwork, rank: int, *, alpha: float | None = None, targets: Sequence[str] | None = None
) -> None:
    """Freeze a side network but for new adapters and for what the main network has no weights for.

    What was frozen before stays so and gets no adapter: it would never get a gradient.

    Args:
        side: its module's layers are replaced in place.
        rank: of the adapters.
        alpha: the adapters are scaled by alpha / rank; None: ``rank``, a scale of 1.
        targets: ends of the dotted names of the layers that get one (``to_q``, ``ff.net.2``); None: the family's own.

    Raises:
        LisaError: the side network is no copy, or no layer that could get an adapter ends in one of ``targets``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if not side.lora_targets:
        raise no_copy(side.kind)
    network = side.module
    full = {id(parameter) for parameter in side.new_parameters() if parameter.requires_grad}
    layers = [name for name, layer in network.named_modules() if _adaptable(layer) and id(layer.weight) not in full]
    ends = side.lora_targets if targets is None else targets
    chosen = [name for name in layers if any(_ends(name, end) for end in ends)]
    missed = [end for end in ends if not any(_ends(name, end) for name in layers)]
    if not chosen or (targets is not None and missed):  # some variants of a family lack some of its layers
        raise _unmatched(side.kind, missed, layers)
    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=chosen)
    inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    for parameter in network.parameters():
        if id(parameter) in full:
            parameter.requires_grad_(True)


def no_copy(kind: str) -> LisaError:
    """The error of a kind of side network that does not start as a copy of the main network."""
    return LisaError(
        f"side.lora_rank: a {kind} is small and no copy of the main network; there is nothing to adapt",
        "Leave side.lora_rank empty: it is trained in full",
    )


@contextmanager
def without_adapters(network: Any) -> Iterator[Any]:
    """Inside, every adapter is merged into its layer, and ``network`` is a plain one; afterwards it is as it was.

    W x + s B (A x) becomes (W + s B A) x, the same but for rounding. Harmless for a network without adapters. Takes the
    memory of the adapted layers' weights.

    Example:
        >>> with without_adapters(controlnet):
        ...     controlnet.save_pretrained(folder)
    """
    places = [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]
    places = [(parent, name, child) for parent, name, child in places if is_adapted(child)]
    kept: list[tuple[nn.Module, str, Any, Tensor]] = []
    try:
        for parent, name, layer in places:
            base = layer.get_base_layer()
            kept.append((parent, name, layer, base.weight.data))
            with torch.no_grad():
                base.weight.data = base.weight + layer.get_delta_weight(_ADAPTER).to(base.weight)
            setattr(parent, name, base)
        yield network
    finally:
        for parent, name, layer, weight in kept:
            layer.get_base_layer().weight.data = weight
            setattr(parent, name, layer)


def is_adapted(module: nn.Module) -> bool:
    """Whether a layer has an adapter. Told by its methods, so that peft need not be imported."""
    return hasattr(module, "get_base_layer") and hasattr(module, "get_delta_weight")


def _adaptable(layer: Any) -> bool:
    """Linear layers and ordinary convolutions that are trained; peft cannot merge into grouped ones."""
    kinds = (nn.Linear, nn.Conv2d)
    return isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1 and layer.weight.requires_grad


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _unmatched(kind: str, missed: Sequence[str], layers: Sequence[str]) -> LisaError:
    endings = sorted({_ending(name) for name in layers})
    hint = nearest(missed[0], endings) if missed else None
    return LisaError(
        f"no layer of this {kind} that an adapter could be put on ends in {' or '.join(map(repr, missed))}"
        + (f" ({hint})" if hint else ""),
        "Set side.lora_targets to endings of its layers' names",
        endings,
    )


def _ending(name: str) -> str:
    """``to_q`` of ``a.b.to_q``; ``to_out.0`` of ``a.b.to_out.0``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
