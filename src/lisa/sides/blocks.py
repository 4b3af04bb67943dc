"""What ControlNets that are stacks of transformer blocks (SD3's, Flux's) have in common: how deep, what is dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lisa.common.errors import LisaError
from lisa.sides.base import SideOptions

#: The linear layers of an attention, and of one over image and text tokens side by side, by the ends of their names.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
#: Those of a feed-forward.
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
#: Those of blocks that carry image and text tokens side by side.
LORA_TARGETS = (*JOINT_ATTENTION, *FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2")

#: (blocks of the side network, blocks of the main network) -> numbers of the side's blocks that the main one takes up
Entered = Callable[[int, int], set[int]]


def choose_depth(options: SideOptions, blocks: int, entered: Entered, custom: int) -> int:
    """Blocks of a new side network: what was asked for, else ``custom`` or the nearest below it.

    Main networks spread the control over their blocks by division, so that with some depths the last blocks of a side
    network would reach nothing.

    Raises:
        LisaError: such a depth was asked for (the message lists the others).
    """
    possible = [depth for depth in range(1, blocks + 1) if entered(depth, blocks) == set(range(depth))]
    if not possible:
        raise LisaError(f"a main network of {blocks} blocks has none that a control could enter after")
    if options.depth is None:
        return max(depth for depth in possible if depth <= max(custom, possible[0]))
    if options.depth not in possible:
        raise LisaError(
            f"side.depth is {options.depth}, but the main network's {blocks} blocks take up only "
            f"{len(entered(options.depth, blocks))} blocks of such a side network",
            "Choose a depth of which every block is used",
            [str(depth) for depth in possible],
        )
    return options.depth


@contextmanager
def lent_config(network: Any, *without: str) -> Iterator[None]:
    """A throw-away copy of the configuration, ``without`` some values, while an upstream ``from_transformer`` runs.

    SD3's writes into it. The copy also drops the list of values left at their default, which ``from_config`` would take
    for the side network's own defaults, whatever depth was asked for.
    """
    own = network._internal_dict
    left_out = {"_use_default_values", *without}
    network._internal_dict = type(own)({key: value for key, value in own.items() if key not in left_out})
    try:
        yield
    finally:
        network._internal_dict = own


def freeze_unused(blocks: Sequence[nn.Module], zero_modules: Sequence[nn.Module], used: set[int]) -> None:
    """Freeze what the main network does not take up: it would never get a gradient."""
    for number, module in enumerate(zero_modules):
        if number not in used:
            module.requires_grad_(False)
    for block in blocks[max(used) + 1 :]:
        block.requires_grad_(False)


def freeze_text_end(block: Any) -> None:
    """Freeze what makes the text tokens that leave the last double block: nobody reads them.

    Text queries are among it: their gradient is not missing but zero.
    """
    for module in (block.ff_context, block.attn.to_add_out, block.attn.add_q_proj, block.attn.norm_added_q):
        if module is not None:
            module.requires_grad_(False)
