"""Pairs of a main and a side network: the prior and the controlled prediction of one batch, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError, choose
from lisa.mains.base import Context, MainNetwork
from lisa.mains.stable_diffusion import load_stable_diffusion
from lisa.sharing import SharedPrefix
from lisa.sides.base import SideNetwork
from lisa.sides.controlnet import ControlNetSide


@dataclass(frozen=True)
class Inputs:
    """What both passes see: ``x_t`` (B, C, h, w), process time ``t`` (B,), ``context``, ``condition`` in 0..1."""

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
            return Prediction(self.control(inputs), None)
        if self.shared is None:
            with torch.no_grad():
                prior = self.main.forward(inputs.x_t, inputs.t, inputs.context)
            return Prediction(self.control(inputs), prior)
        try:
            with torch.no_grad(), self.shared.capture():
                prior = self.main.forward(inputs.x_t, inputs.t, inputs.context)
            return Prediction(self.control(inputs, self.shared.replay()), prior)
        finally:  # the side network may fail before anything is replayed
            self.shared.forget()

    def control(self, inputs: Inputs, replay: Any = None) -> Tensor:
        """The controlled prediction alone."""
        time = self.main.process.model_time(inputs.t)
        residuals = self.side.forward(inputs.x_t, time, inputs.context, inputs.condition)
        with replay if replay is not None else nullcontext():
            return self.main.forward(inputs.x_t, inputs.t, inputs.context, residuals)

    def pipeline(self, side_module: nn.Module | None = None) -> Any:
        """The diffusers pipeline around this main network and ``side_module`` (default: ours)."""
        return self.spec.pipeline(self.main, side_module if side_module is not None else self.side.module)


@dataclass(frozen=True)
class PairSpec:
    """A registered kind of pair.

    Attributes:
        name: what users call it.
        load_main: path or Hub name (and options) -> main network.
        make_side: main network -> new side network, a copy of it where that is the custom.
        load_side: path or Hub name -> side network (warm start).
        pipeline: (main network, side module) -> diffusers pipeline.
        pipeline_name: its class, for people.
        shares_prefix: whether the control enters only after ``main.shared_modules()``.
        default_layer: the layer that is aligned unless told otherwise.
    """

    name: str
    load_main: Callable[..., MainNetwork]
    make_side: Callable[[MainNetwork], SideNetwork]
    load_side: Callable[[str], SideNetwork]
    pipeline: Callable[[MainNetwork, nn.Module], Any]
    pipeline_name: str
    shares_prefix: bool
    default_layer: str


_PAIRS: dict[str, PairSpec] = {}


def register(spec: PairSpec) -> PairSpec:
    """Make a kind of pair known under its name."""
    _PAIRS[spec.name] = spec
    return spec


def pair_spec(name: str) -> PairSpec:
    """The registered kind of pair ``name``.

    Raises:
        LisaError: there is none; the message lists what there is.
    """
    return _PAIRS[choose("pair", name, _PAIRS)]


def pair_names() -> list[str]:
    """The names of all registered pairs."""
    return list(_PAIRS)


def check_side_fits(main: MainNetwork, side: SideNetwork) -> None:
    """Refuse a warm start from a side network of another architecture.

    Raises:
        LisaError: latents, text width, blocks or the condition's size differ; the message names both.
    """
    ours, theirs = main.network.config, side.module.config
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        a, b = getattr(ours, name, None), getattr(theirs, name, None)
        if _plain(a) != _plain(b):
            raise _misfit(main, f"its {name} is {b}, the main network's is {a}")
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if getattr(theirs, name, None) is not None:
            raise _misfit(main, f"it has {name}={getattr(theirs, name)!r}, so it needs more than text")
    factor = 2 ** (len(theirs.conditioning_embedding_out_channels) - 1)
    if factor != main.latent_factor:
        raise _misfit(main, f"it shrinks conditions by {factor}, the main network's latents by {main.latent_factor}")
    if theirs.conditioning_channels != 3:
        raise _misfit(main, f"it takes conditions of {theirs.conditioning_channels} channels, pictures have 3")


def _misfit(main: MainNetwork, why: str) -> LisaError:
    return LisaError(
        f"the side network does not fit {main.source!r}: {why}",
        "Start from a side network that was trained for this main network, or leave side.init empty",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _controlnet_pipeline(main: MainNetwork, module: nn.Module) -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    components = main.pipeline_components()
    return StableDiffusionControlNetPipeline(
        **components, controlnet=module, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


register(
    PairSpec(
        name="sd-controlnet",
        load_main=load_stable_diffusion,
        make_side=lambda main: ControlNetSide.from_main(main.network, main.latent_factor),
        load_side=ControlNetSide.from_folder,
        pipeline=_controlnet_pipeline,
        pipeline_name="StableDiffusionControlNetPipeline",
        shares_prefix=True,
        default_layer="down.5",
    )
)
