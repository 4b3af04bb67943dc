"""How the way in of the conditions begins in a new side network.

It starts in one of two ways that keep the conditions out at first. ``ControlNetConditioningEmbedding`` (the original's
``input_hint_block``) reads pixels by a chain of convolutions with torch's default weights, each of which hands on about
a third of what differs between conditions: of sparse strokes less than a thousandth is left at its end. Networks of the
transformer families read condition latents by one layer that starts at zero, and whose first steps follow what all
conditions have in common, such as the latent of black. In both, control stays away for long and then sets in suddenly.

Neither is needed to start without an effect: the layers at the way out are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.sides.attach import default_select

_Batch = TypeVar("_Batch")

# Pictures of which a first convolution's outputs are no great load: so many pixels, but at least so many pictures.
_PIXELS, _FEWEST = 2**22, 8
# Layers that take condition latents (or tokens) in; told by attribute, whatever the class.
_LAYERS = ("pos_embed_input.proj", "controlnet_x_embedder", "input_block", "control_layers.0.before_proj")


def find_condition_embedding(network: nn.Module) -> nn.Module | None:
    """Where conditions come in: a ``ControlNetConditioningEmbedding``, or a linear layer or convolution; None: neither.

    None is what adapters are, which are all of their own, and VACE's branch, which does not start at zero there.
    """
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    for module in network.modules():
        if isinstance(module, ControlNetConditioningEmbedding):
            return module
    for path in _LAYERS:
        try:
            layer = network.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layer, nn.Linear | nn.Conv2d):
            return layer
    return None


def condition_embedding(network: nn.Module) -> nn.Module:
    """The same.

    Raises:
        LisaError: there is none.
    """
    if (found := find_condition_embedding(network)) is not None:
        return found
    raise LisaError(
        f"{type(network).__name__} has no embedding of its condition that could start in another way",
        "Leave side.condition_init at default",
    )


@torch.no_grad()
def init_condition_embedding(
    network: nn.Module,
    run: Callable[[_Batch], object],
    batches: Iterable[_Batch],
    *,
    latent: tuple[int, int] | None = None,
) -> None:
    """Start a new side network so that what differs between its conditions comes in, from the first step on.

    Layer by layer (LSUV: Mishkin and Matas, arXiv 1511.06422): Kaiming weights, scaled until the outputs differ between
    these samples by a standard deviation of 1. That is taken between samples at each place, not over all values, since
    what all conditions share tells nothing. Of a condition embedding of convolutions the biases are zero, and the last
    convolution stays zero; of a single layer the bias takes out what all conditions share.

    Args:
        network: a new ``ControlNetModel``, ``SD3ControlNetModel``, ``FluxControlNetModel`` or other of their kind.
        run: calls the network with a batch, as the training does. It is cut short once the condition has come in.
        batches: of training samples, some dozens in all, each sample with its own condition.
        latent: (H, W) of the latent; needed where captions come in by the same layer (Z-Image), to tell them apart.

    Raises:
        LisaError: the network has no such embedding, ``run`` did not call it, the conditions do not differ, or
            ``latent`` is missing.
    """
    embedding, select = condition_embedding(network), default_select(network)
    if select is not None and latent is None:
        raise LisaError(
            f"by {type(network).__name__}'s way in come captions, too", "Pass latent=, (H, W) of the latent"
        )
    with _caught(embedding) as caught:
        for batch in batches:
            try:
                run(batch)
            except _CameInError:
                continue
    single = isinstance(embedding, nn.Linear | nn.Conv2d)
    weight = next(embedding.parameters())
    if select is not None:
        caught = [select(each, latent) for each in caught]
    hidden = _measured(caught, pixels=not single).to(weight.device, weight.dtype)
    layer: Any = embedding
    if single:
        _unit_variance(layer, hidden, "linear")
        if layer.bias is not None:
            shared = layer(hidden)
            layer.bias.sub_(shared.movedim(1 if shared.ndim == 4 else -1, 0).flatten(1).mean(dim=1))
        return
    for convolution in (layer.conv_in, *layer.blocks):
        _unit_variance(convolution, hidden, "relu")
        hidden = nn.functional.silu(convolution(hidden))


def variation(values: Tensor) -> Tensor:
    """What differs between samples (N, ...): the variance between them at each place, mean over the places."""
    return values.var(dim=0, correction=0).mean()


def _measured(caught: Sequence[Tensor], pixels: bool) -> Tensor:
    """What is measured, (N, ...). Of pixels, spread evenly, only as many as a first convolution easily has room for.

    Raises:
        LisaError: nothing came in, or what did does not differ.
    """
    if not caught:
        raise LisaError("no condition came in: run did not call this network with any batch", "Call the network itself")
    given = torch.cat(caught)
    if pixels:
        most = max(_FEWEST, _PIXELS // given[0, 0].numel())
        given = given[:: -(-len(given) // most)]
    if not variation(given) > 0:
        raise LisaError(
            f"{len(given)} conditions that do not differ cannot tell how the condition embedding should start",
            "Give some dozens of different ones, or leave side.condition_init at default",
        )
    return given


def _unit_variance(layer: nn.Linear | nn.Conv2d, given: Tensor, nonlinearity: Any) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    layer.weight.div_(variation(layer(given)).sqrt())


class _CameInError(Exception):
    """The condition has come in: the rest of the network need not run."""


@contextmanager
def _caught(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """What the embedding is given by each call of the network, which ends there."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        caught.append(given[0].detach().float().cpu())
        raise _CameInError

    hook = embedding.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()
