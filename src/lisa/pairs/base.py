"""Pairs of a main and a side network: the prior and the controlled prediction of one batch, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lisa.core.precision import as_stored
from lisa.mains.base import Context, MainNetwork
from lisa.sharing import SharedPrefix, check_frozen
from lisa.sides.base import SideNetwork, SideOptions


@dataclass(frozen=True)
class Inputs:
    """What both passes see: ``x_t`` (B, C, h, w), process time ``t`` (B,), ``context``, ``condition``.

    The condition is what the side network reads: pixels (B, 3 n, H, W) in 0..1, n pictures stacked, or their latents.
    Of clips ``x_t`` is (B, C, f, h, w), the condition (B, 3 n, F, H, W) or their latents; ``t`` is (B,) all the same.
    """

    x_t: Tensor
    t: Tensor
    context: Context
    condition: Tensor


@dataclass(frozen=True)
class Prediction:
    """``controlled`` with gradient to the side network; ``prior`` without, or None where it was not asked for."""

    controlled: Tensor
    prior: Tensor | None


class Pair:
    """A main network, a side network, and how the one enters the other.

    Args:
        spec: the registered kind of pair.
        main: frozen.
        side: its ``module`` is trained.
        share_prior: compute what both passes have in common once, where the pair allows it.
    """

    def __init__(self, spec: PairSpec, main: MainNetwork, side: SideNetwork, *, share_prior: bool = True) -> None:
        self.spec, self.main, self.side = spec, main, side
        shared = main.shared_modules() if share_prior and spec.shares_prefix else []
        self.shared = SharedPrefix(main.network, shared) if shared else None

    def predict(self, inputs: Inputs, *, need_prior: bool = True) -> Prediction:
        """The prior first (no gradient, same x_t, t and context), then the controlled pass on what was kept of it."""
        if not need_prior:
            check_frozen(self.main.network)
            return Prediction(self.control(inputs), None)
        (prediction,) = self.predictions(inputs, [inputs.condition])
        return prediction

    def predictions(self, inputs: Inputs, conditions: Sequence[Tensor]) -> Iterator[Prediction]:
        """The prior once, then the controlled pass under each of the conditions, as they are asked for."""
        check_frozen(self.main.network)
        inputs = self._completed(inputs)
        each = [replace(inputs, condition=condition) for condition in conditions]
        if self.shared is None:
            with torch.no_grad():
                prior = self._main(inputs)
            yield from (Prediction(self._control(one), prior) for one in each)
            return
        self.shared.network = self.main.network  # what is called now: it may have been compiled since
        try:
            with torch.no_grad(), self.shared.capture():
                prior = self._main(inputs)
            for one in each:
                yield Prediction(self._control(one, self.shared.replay(again=one is not each[-1])), prior)
        finally:  # the side network may fail before anything is replayed
            self.shared.forget()

    def control(self, inputs: Inputs) -> Tensor:
        """The controlled prediction alone."""
        return self._control(self._completed(inputs))

    def run_side(self, inputs: Inputs) -> Any:
        """The side network alone: what it gives the main network; its features can be caught on the way."""
        return self._residuals(self._completed(inputs))

    @torch.no_grad()
    def prior(self, inputs: Inputs) -> Tensor:
        """The main network's prediction without control, alone."""
        check_frozen(self.main.network)
        return self._main(self._completed(inputs))

    def scaled(self, inputs: Inputs) -> Tensor:
        """``x_t`` at the scale at which networks, and decoders that read it, are given it."""
        return self.main.process.model_input(inputs.x_t, inputs.t)

    def read_condition(self, pixels: Tensor) -> Tensor:
        """Pixels of a condition (B, 3 n, H, W), of clips (B, 3 n, F, H, W), in 0..1 to what the side network reads."""
        return self.main.encode_condition(pixels) if self.side.reads == "latents" else pixels

    def _completed(self, inputs: Inputs) -> Inputs:
        with as_stored(self.main.network):
            return replace(inputs, context=self.main.complete(inputs.context, inputs.x_t))

    def _main(self, inputs: Inputs, residuals: Any = None) -> Tensor:
        with as_stored(self.main.network):
            return self.main.forward(inputs.x_t, inputs.t, inputs.context, residuals)

    def _control(self, inputs: Inputs, replay: Any = None) -> Tensor:
        residuals = self._residuals(inputs)
        with replay if replay is not None else nullcontext():
            return self._main(inputs, residuals)

    def _residuals(self, inputs: Inputs) -> Any:
        time = self.main.process.model_time(inputs.t)
        return self.side.forward(self.scaled(inputs), time, inputs.context, inputs.condition)

    @property
    def call(self) -> PipelineCall:
        """How its pipeline is called; see :meth:`PairSpec.call_with`."""
        return self.spec.call_with(self.main, [self.side])

    def pipeline(self, side_module: nn.Module | None = None) -> Any:
        """The diffusers pipeline around this main network and ``side_module`` (default: ours)."""
        return self.spec.pipeline(self.main, side_module if side_module is not None else self.side.module)


#: What pipelines of clips that go on from a picture take where nothing is said: frames per second, and how much moves.
FRAME_RATE, MOTION = 7.0, 127.0


@dataclass(frozen=True)
class PipelineCall:
    """How a pipeline of diffusers names what all of them take.

    Attributes:
        image: the argument of the condition images.
        scale: of the weight of the control.
        guidance: of classifier-free guidance.
        guidance_offset: added to it, for pipelines in which no guidance is not 1.
        negative: the prompt of no text, for pipelines that guide only where they are given one.
        negates: whether a negative prompt makes a difference to it, guidance being on.
        network: of the side network, when the pipeline is made (``from_pretrained(..., controlnet=side)``).
        more: further arguments.
        one_at_a_time: whether pictures of one batch would influence each other, so that each is made alone.
        takes_tensors: whether condition pictures may come as tensors (B, 3 n, H, W) in 0..1, n of them stacked.
        container: class of diffusers in which the pipeline takes several side networks at once, with lists of condition
            pictures and of scales; None where it has none.
        agree: what of their configurations must then be the same: pipeline or container go by the first one's.
        clips: whether it makes clips: the condition is a list of frames.
        begins: what clips are made of: a ``prompt``, or the ``frame`` that they begin with.
        chunk: the argument that says how many frames are decoded at once; empty: it has none.
        joins: the method of a side network that makes, of the main network's folder, what the pipeline takes as
            ``network``, where that is both in one; empty: it takes the side network itself.
    """

    image: str = "image"
    scale: str = "controlnet_conditioning_scale"
    guidance: str = "guidance_scale"
    guidance_offset: float = 0.0
    negative: str | None = None
    negates: bool = True
    network: str = "controlnet"
    more: Mapping[str, Any] = field(default_factory=dict)
    one_at_a_time: bool = False
    takes_tensors: bool = False
    container: str | None = None
    agree: tuple[str, ...] = ()
    clips: bool = False
    begins: str = "prompt"
    chunk: str = ""
    joins: str = ""


@dataclass(frozen=True)
class PairSpec:
    """A registered kind of pair.

    Attributes:
        name: what users call it.
        main_kind: class of the main network, for people.
        side_kind: class of the side network.
        load_main: path or Hub name (and options) -> main network.
        make_side: main network and options -> new side network, a copy of it where that is the custom.
        load_side: path or Hub name (and what makes a configuration for a file that tells none) -> side network.
        check_fit: refuses a side network of another architecture.
        pipeline: (main network, side module) -> diffusers pipeline.
        pipeline_name: its class, for people.
        predictions: what main networks of the family may predict.
        shares_prefix: whether the control enters only after ``main.shared_modules()``.
        shared: what that is, in words; empty where nothing is shared.
        default_layer: the layer that is aligned unless told otherwise.
        example: the configuration of a well-known main network (its name, and what ``reference_side`` gives for it).
        reference_side: the side network of ``example`` without weights (on the meta device), for its layers' shapes.
        call: how the pipeline is called.
        package: where ``side_kind`` and ``pipeline_name`` are imported from.
        overflows_in_fp16: what of the family leaves float16's range, for people; empty where nothing is known to.
        verified_by: what has been seen to hold for it, for people.
    """

    name: str
    main_kind: str
    side_kind: str
    load_main: Callable[..., MainNetwork]
    make_side: Callable[[MainNetwork, SideOptions], SideNetwork]
    load_side: Callable[..., SideNetwork]
    check_fit: Callable[[MainNetwork, SideNetwork], None]
    pipeline: Callable[[MainNetwork, nn.Module], Any]
    pipeline_name: str
    predictions: tuple[str, ...]
    shares_prefix: bool
    shared: str
    default_layer: str
    example: str
    reference_side: Callable[[], SideNetwork]
    call: PipelineCall = PipelineCall()
    package: str = "diffusers"
    overflows_in_fp16: str = ""
    verified_by: tuple[str, ...] = ()

    def load_fitting_side(self, main: MainNetwork, source: str, options: SideOptions | None = None) -> SideNetwork:
        """An existing side network for ``main`` (warm start, sampling).

        A single file that tells no configuration gets that of a new side network, made with ``options``.

        Raises:
            LisaError: it cannot be loaded, or belongs to another main network.
        """
        side = self.load_side(source, lambda: self.make_side(main, options or SideOptions()).module.config)
        self.check_fit(main, side)
        return side

    def call_with(self, main: MainNetwork, sides: Sequence[SideNetwork]) -> PipelineCall:
        """How the pipeline around these networks is called: with what this main and these side networks need."""
        names = {name: None for side in sides for name in side.call_options}
        each = {name: [side.call_options[name] for side in sides] for name in names}
        return replace(self.call, more={**self.call.more, **main.call_options, **each})


#: What all pairs that come with this package are verified by; each adds what holds for it alone.
CONFORMANCE = ("tests/conformance on tiny random weights, picture equal to the stock pipeline's",)
TOGETHER = "several together: picture equal to the stock pipeline with diffusers' container"
ORIGINAL_NAMES = "exported under the original names and read back: same picture"
