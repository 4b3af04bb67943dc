"""A hook on one module of the side network that catches one feature per training forward.

What must *not* count is most of the work. Gradient checkpointing runs a module again during backward; sampling and
held-out passes run the whole network. So the tap listens to the root too: its forward arms the tap if it is a training
forward (train mode, gradients enabled, not a recomputation inside a backward), and its end disarms it. Only the
first firing of the tapped module in between is kept, until it is read or the next training forward begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lisa.common.errors import LisaError, choose

TAPS = ("input", "output")

#: Cuts the image's tokens out of a feature that holds others too: (feature, (H, W) of the latent) -> feature.
Select = Callable[[Tensor, tuple[int, int]], Tensor]
#: (whole feature, what selects the part that is read) -> the whole feature, or an alias of it.
Through = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]

_NEVER_RAN = "the side network has not run since the aligner was attached"
_REENTRANT = "it ran without gradients inside the side network, as reentrant gradient checkpointing does"
_RUN_IT = (
    "Run the side network once in train mode with gradients enabled before each call of the aligner; "
    "for a held-out pass, run it inside `with aligner.observing():`"
)


class FeatureTap:
    """Catches the input (or output) of one module during a training forward of the network it lies in.

    Args:
        root: the network whose forward arms the tap.
        path: dotted path of the tapped module inside ``root``.
        tap: ``"input"`` (first tensor argument) or ``"output"`` (the output, or the first tensor in it).
        name: what errors call it; the path by default.
        select: of what is caught, the part that :meth:`read` gives; all of it by default.

    Raises:
        LisaError: unknown ``tap``.
        AttributeError: no module has that path.

    Example:
        >>> tap = FeatureTap(controlnet, "controlnet_down_blocks.5")
        >>> controlnet(...)  # in train mode, with gradients
        >>> feature = tap.read()
    """

    def __init__(
        self,
        root: nn.Module,
        path: str,
        tap: str = "input",
        *,
        name: str | None = None,
        select: Select | None = None,
    ) -> None:
        choose("tap", tap, TAPS)
        module = root.get_submodule(path)
        self.name = name or path
        self.root = root
        self.select = select
        self._enabled = True
        self._observing = False
        self._armed = False
        self._feature: Tensor | None = None
        self._missing = _NEVER_RAN  # why there is nothing to read
        self._handles: list[RemovableHandle] = [root.register_forward_pre_hook(self._root_begins)]
        if tap == "input":
            self._handles.append(module.register_forward_pre_hook(self._takes, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(self._gives))
        # Called after an exception too: a forward that failed half-way must not leave the tap armed.
        self._handles.append(root.register_forward_hook(self._root_ends, always_call=True))

    @property
    def waiting(self) -> bool:
        """Whether a feature has been caught and not yet read."""
        return self._feature is not None

    @property
    def enabled(self) -> bool:
        """Whether training forwards are caught. Observed ones are, either way."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if not value:
            self._drop("the alignment weight is 0")

    def read(self, size: tuple[int, int] | None = None, through: Through | None = None) -> Tensor:
        """The caught feature, with its graph. It can be read once.

        Args:
            size: (H, W) of the latent; needed where the tap selects a part.
            through: gives an alias of the whole feature to read instead (whose gradients are the reader's alone).

        Raises:
            LisaError: none has been caught (and why), it has been read already, or ``size`` is missing.
        """
        if self.select is not None and size is None:
            raise LisaError(f"layer {self.name!r} holds more than the image", "Pass size=, (H, W) of the latent")
        if self._feature is None:
            raise LisaError(f"no feature of layer {self.name!r} to read: {self._missing}", self._remedy())
        feature, select = self._feature, self.select
        self._drop("it has been read already, by an earlier call of the aligner")

        def part(whole: Tensor) -> Tensor:
            return whole if select is None or size is None else select(whole, size)

        return part(feature if through is None else through(feature, part))

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside, any forward of the root is caught, also in eval mode or without gradients."""
        before, self._observing = self._observing, True
        try:
            yield
        finally:
            self._observing = before

    def remove(self) -> None:
        """Take all hooks away; the modules are as they were before the tap. Harmless when repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._armed = False
        self._drop("the tap has been removed")

    def _root_begins(self, root: nn.Module, args: tuple[Any, ...]) -> None:
        self._armed = False
        if _inside_backward() or not (self._enabled or self._observing):
            return
        if not self._observing and not (root.training and torch.is_grad_enabled()):
            if self._feature is None:
                mode = "without gradients" if root.training else "in eval mode"
                self._missing = f"the side network last ran {mode}"
            return
        self._drop("the side network ran, but this layer did not")
        self._armed = True

    def _takes(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._armed:
            self._catch((*args, *kwargs.values()), "input")

    def _gives(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._armed:
            self._catch(output, "output")

    def _root_ends(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._armed = False

    def _catch(self, values: Any, what: str) -> None:
        self._armed = False  # later firings in the same forward do not count
        if not self._observing and not torch.is_grad_enabled():
            # Aligning a feature that has no graph would train the decoder alone, silently.
            self._missing = _REENTRANT
            return
        self._feature = _first_tensor(values)
        if self._feature is None:
            raise LisaError(f"the {what} of layer {self.name!r} holds no tensor", "Tap another layer")

    def _drop(self, why: str) -> None:
        self._feature, self._missing = None, why

    def _remedy(self) -> str:
        if self._missing == _REENTRANT:
            return (
                "Use non-reentrant checkpointing (use_reentrant=False), or tap a layer outside the checkpointed blocks"
            )
        return _RUN_IT

    def __getstate__(self) -> dict[str, Any]:
        # A deep copy of the side network (an EMA, say) takes its hooks along. The copy's tap is asleep, and does not
        # try to copy a feature that hangs in a graph.
        state = self.__dict__.copy()
        state.update(_feature=None, _enabled=False, _observing=False, _armed=False, _handles=[])
        return state


def _inside_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _first_tensor(values: Any) -> Tensor | None:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Mapping):
        values = values.values()
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        for value in values:
            found = _first_tensor(value)
            if found is not None:
                return found
    return None
