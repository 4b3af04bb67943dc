"""Compute once what the prior and the controlled pass have in common: capture in one, replay in the other.

With a ControlNet the control enters a UNet at the skip connections and after the middle block, so the down blocks and
the middle block give the same output with and without it (method.md, "Cost"). The prior pass runs first, without
gradient, and its outputs of these modules are kept; in the controlled pass stubs in place of the modules return them.
Outputs and gradients equal those of two separate passes bit for bit.

Whatever else may sit on the frozen network (offloading, casting, compiled blocks, checkpointing) runs as it would in
two passes; what cannot is refused. ``docs/families.md`` lists which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lisa.common.errors import LisaError
from lisa.core.replacing import is_compiled, replaced

_SEPARATE = "train with share_prior=false"


class SharedPrefix:
    """Modules upstream of the first injection, whose outputs are computed once per step.

    Args:
        network: the frozen main network.
        modules: the modules to share, all of them upstream of every injected residual.

    Raises:
        LisaError: sharing would be silently wrong: the network has trainable parameters, or it is compiled as a whole.
    """

    def __init__(self, network: nn.Module, modules: Sequence[nn.Module]) -> None:
        self.network, self.modules = network, list(modules)
        self._outputs: dict[int, Any] = {}
        self.check()

    def check(self) -> None:
        """Refuse what capture and replay cannot do; called again before every capture, since users change models."""
        if any(parameter.requires_grad for parameter in self.network.parameters()):
            raise LisaError(
                "the main network has trainable parameters, whose gradients the shared prior would cut",
                f"Freeze it (requires_grad_(False)), or {_SEPARATE}",
            )
        if is_compiled(self.network):
            raise LisaError(
                "the main network is compiled as a whole, and compiled code ignores capture and replay",
                f"{_SEPARATE.capitalize()}, or compile only modules inside it (its blocks: compile_repeated_blocks())",
            )

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Keep what the shared modules give while the block runs (nothing, if it fails)."""
        self.check()
        self.forget()
        try:
            with ExitStack() as stack:
                for module in self.modules:
                    if module._compiled_call_impl is None:
                        # First of the module's hooks: replay goes through the others again, so what they change must
                        # not be in what is kept.
                        stack.callback(module.register_forward_hook(self._keep, prepend=True).remove)
                    else:
                        stack.enter_context(replaced(module, "_compiled_call_impl", self._keeping(module)))
                yield
            missing = [type(m).__name__ for m in self.modules if id(m) not in self._outputs]
            if missing:
                raise LisaError(
                    f"shared modules did not run in the prior pass: {', '.join(missing)}",
                    f"Report this main network, and {_SEPARATE}",
                )
        except BaseException:
            self.forget()
            raise

    @contextmanager
    def replay(self, *, again: bool = False) -> Iterator[None]:
        """Give back what was kept, without running the shared modules, while the block runs; then forget it, unless it
        is wanted ``again``.
        """
        if not self.captured:
            raise LisaError("nothing was captured to replay", "Run the prior pass inside capture() first")
        with ExitStack() as stack:
            if not again:
                stack.callback(self.forget)
            for module in self.modules:
                stack.enter_context(self._stub(module, self._outputs[id(module)]))
            yield

    @property
    def captured(self) -> bool:
        """Whether there is something to replay."""
        return len(self._outputs) == len(self.modules)

    def forget(self) -> None:
        """Let go of what was kept; harmless when repeated."""
        self._outputs.clear()

    def _keep(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        self._outputs[id(module)] = output

    def _keeping(self, module: nn.Module) -> Callable[..., Any]:
        """A compiled module's call, with what it gives kept: its hooks are compiled in, later ones are ignored."""
        compiled: Any = module._compiled_call_impl

        def keeping(*args: Any, **kwargs: Any) -> Any:
            output = compiled(*args, **kwargs)
            self._keep(module, args, output)
            return output

        return keeping

    @staticmethod
    def _stub(module: nn.Module, output: Any) -> AbstractContextManager[None]:
        """Replace what runs the module: the instance's ``forward``, or its compiled call, hooks and all."""

        def replayed(*args: Any, **kwargs: Any) -> Any:
            # What was kept has no graph: an input with one means that something before this module is being trained.
            if any(isinstance(value, Tensor) and value.requires_grad for value in (*args, *kwargs.values())):
                raise LisaError(
                    f"a gradient would have to pass through the shared {type(module).__name__}: the control enters "
                    "before it, or its inputs (text embeddings, say) are being trained",
                    _SEPARATE.capitalize(),
                )
            return output

        return replaced(module, "forward" if module._compiled_call_impl is None else "_compiled_call_impl", replayed)


_FREEU = ("s1", "s2", "b1", "b2")


def check_frozen(network: nn.Module) -> None:
    """Refuse what makes the prior another thing than the main network's prediction, shared or not.

    Called at every step, since users change models: one walk over the modules, which reads their own dictionaries.

    Raises:
        LisaError: active dropout, so that prior and control would see different noise; what diffusers can switch on for
            sampling: FreeU, with which the network predicts no mean, a cache, which would give the prior's results back
            in the controlled pass, or weights stored in another type than they compute in, which the backward pass
            would find.
    """
    for module in network.modules():
        if isinstance(module, _DropoutNd) and module.p > 0 and module.training:
            raise LisaError(
                "the main network's dropout is active, so prior and control would see different noise",
                "Put it into eval mode (main.eval())",
            )
        own = module.__dict__
        if all(own.get(name) for name in _FREEU) and "UpBlock" in type(module).__name__:
            raise LisaError(
                "FreeU is on; it rescales features for sampling, and the prior would not be the model's prediction",
                "Call unet.disable_freeu() for training",
            )
        if "_diffusers_hook" in own:
            _check_hooks(own["_diffusers_hook"].hooks)


def _check_hooks(hooks: Mapping[str, Any]) -> None:
    for name, hook in hooks.items():
        if hook._is_stateful:
            raise LisaError(
                f"the main network caches what it computes from call to call ({name})",
                "Switch it off for training (disable_cache())",
            )
        if name == "layerwise_casting":
            raise LisaError(
                "the main network's weights are cast for each layer's computation (enable_layerwise_casting()) and "
                "back again before the backward pass needs them",
                "Load it without, in bfloat16 where memory is short",
            )
