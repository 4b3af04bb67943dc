"""Which blocks of a main network run, how often, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lisa.core.replacing import replaced


def blocks_of(network: Any) -> list[nn.Module]:
    """The members of its lists, and a UNet's middle block. Embedders and ways out, which cost little, are none."""
    lists = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    middle = getattr(network, "mid_block", None)
    return [block for blocks in lists for block in blocks] + ([] if middle is None else [middle])


@contextmanager
def outputs_of(blocks: list[nn.Module]) -> Iterator[list[list[list[Tensor]]]]:
    """For each block, the tensors of each of its runs. What is given back in place of a run is none."""
    seen: list[list[list[Tensor]]] = [[] for _ in blocks]

    def keeping(forward: Callable[..., Any], kept: list[list[Tensor]]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            kept.append([each.clone() for each in pytree.tree_leaves(output) if isinstance(each, Tensor)])
            return output

        return run

    with ExitStack() as stack:
        for block, kept in zip(blocks, seen, strict=True):
            stack.enter_context(replaced(block, "forward", keeping(block.forward, kept)))
        yield seen


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
