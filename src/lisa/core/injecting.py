"""Control for a UNet that takes no residuals: hooks add them where diffusers' UNets with arguments for them do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.replacing import is_compiled, replaced

#: Keyword arguments of an up block -> the same with residuals added.
Change = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def injected(network: Any, down: Sequence[Tensor], mid: Tensor) -> Iterator[None]:
    """While this runs, ``network`` adds ``down`` to its skip connections and ``mid`` to what its middle block gives.

    The same bits as ``down_block_additional_residuals`` and ``mid_block_additional_residual`` give where a UNet has
    these arguments. All is added at the entrance of the up blocks, so that what lies before them may be replayed
    (``lisa.sharing``). Nothing stays behind.

    Args:
        network: a UNet of diffusers, which calls its ``up_blocks`` with keyword arguments.
        down: one for each skip connection, in the order of the down blocks, shaped as they are.
        mid: shaped as the middle block's output.

    Raises:
        LisaError: another number of residuals than there are skip connections, or see :func:`check_injectable`.
    """
    check_injectable(network)
    skips = sum(len(block.resnets) for block in network.up_blocks)
    if len(down) != skips:
        raise LisaError(
            f"{len(down)} residuals for the {skips} skip connections of a {type(network).__name__}",
            "Use a side network that was made for this main network",
        )
    with ExitStack() as stack:
        end = skips
        for number, block in enumerate(network.up_blocks):  # the first one takes the last skips
            start = end - len(block.resnets)
            change = _adding(down[start:end], mid if number == 0 else None)
            end = start
            if block._compiled_call_impl is None:
                hook = block.register_forward_pre_hook(_as_hook(change), with_kwargs=True)
                stack.callback(hook.remove)
            else:  # hooks are compiled in, later ones are ignored
                changed = _before(block._compiled_call_impl, change)
                stack.enter_context(replaced(block, "_compiled_call_impl", changed))
        yield


def check_injectable(network: nn.Module) -> None:
    """Refuse a network that would silently run without control.

    Raises:
        LisaError: it is compiled as a whole.
    """
    if is_compiled(network):
        raise LisaError(
            f"the {type(network).__name__} is compiled as a whole, and compiled code ignores the hooks of its control",
            "Compile its blocks one by one (block.compile())",
        )


def _adding(skips: Sequence[Tensor], hidden: Tensor | None) -> Change:
    def change(given: dict[str, Any]) -> dict[str, Any]:
        own = zip(given["res_hidden_states_tuple"], skips, strict=True)
        added: dict[str, Any] = {"res_hidden_states_tuple": tuple(state + residual for state, residual in own)}
        if hidden is not None:
            added["hidden_states"] = given["hidden_states"] + hidden
        return {**given, **added}

    return change


def _as_hook(change: Change) -> Callable[..., Any]:
    return lambda _block, args, given: (args, change(given))


def _before(call: Callable[..., Any], change: Change) -> Callable[..., Any]:
    return lambda *args, **given: call(*args, **change(given))
