"""Settings that save memory: what is refused before anything is read, and what they become."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from lisa.common.errors import LisaError
from lisa.mains.base import MainNetwork
from lisa.mains.loading import is_single_file
from lisa.mains.weights import Weights, check_quantization
from lisa.pairs import PairSpec, pair_spec
from lisa.sides.base import SideNetwork
from lisa.sides.low_rank import add_low_rank, no_copy
from lisa.train.config import TrainConfig


def check_memory(config: TrainConfig) -> None:
    """Refuse what cannot be done on this machine, or with this pair, before anything is read.

    Raises:
        LisaError: quantised weights without bitsandbytes or CUDA, or from a single file; adapters for a side network
            that is no copy; offloaded encoders that could not be read again.
    """
    model, single = config.model, is_single_file(config.model.path)
    check_quantized(model.quantize, model.path)
    if model.offload_encoders == "disk" and single:
        raise LisaError(
            f"model.offload_encoders=disk: the encoders of a single file ({model.path!r}) cannot be read by themselves",
            "Set model.offload_encoders=cpu, or use the model's folder in diffusers' layout",
        )
    if config.side.lora_rank is not None:
        side = pair_spec(model.pair).reference_side()
        if not side.lora_targets:
            raise no_copy(side.kind)


def check_quantized(quantize: str, source: str) -> None:
    """Refuse quantised weights that cannot be had: on this machine, or of this main network.

    Raises:
        LisaError: no bitsandbytes, no CUDA, or ``source`` is a single file.
    """
    check_quantization(quantize)
    if quantize != "none" and is_single_file(source):
        raise LisaError(
            f"model.quantize={quantize}: a single file ({source!r}) cannot be read quantised",
            "Use the model's folder in diffusers' layout",
        )


def check_device(config: TrainConfig, device: torch.device) -> None:
    """Refuse to offload from the CPU to the CPU.

    Raises:
        LisaError: there is no accelerator.
    """
    if config.model.offload_encoders == "cpu" and device.type == "cpu":
        raise LisaError(
            "model.offload_encoders=cpu: this machine trains on the CPU, whose memory the encoders are in anyway",
            "Set model.offload_encoders=disk, or none",
        )


def offload_to(config: TrainConfig, device: torch.device) -> str:
    """Where the encoders go once all that they give is cached: ``none`` (they stay), ``cpu`` or ``disk``."""
    if config.model.offload_encoders != "auto":
        return config.model.offload_encoders
    cached = {"latents", "text"} <= set(config.data.cache)
    return "cpu" if cached and device.type != "cpu" else "none"


def main_weights(config: TrainConfig) -> Weights:
    """What the main network's weights are read into."""
    return Weights(getattr(torch, config.main_dtype), config.model.quantize)


def make_networks(
    config: TrainConfig, spec: PairSpec, source: str, make_side: Callable[[MainNetwork], SideNetwork]
) -> tuple[MainNetwork, SideNetwork]:
    """Main and side network; the side network with adapters, if it is to have any.

    A copy needs the weights themselves, not what is left of them in 4 bits: where the main network is to be quantised,
    it is first read as it is, and let go once it has been copied.

    Args:
        config: of the training.
        spec: of the pair.
        source: of the main network.
        make_side: makes or loads the side network for a main network.

    Raises:
        LisaError: something cannot be read or does not fit.
    """
    weights = main_weights(config)

    def load(weights: Weights) -> Any:
        files = {"variant": config.model.variant, "config": config.model.single_file_config}
        return spec.load_main(source, **files, weights=weights)

    if weights.quantize == "none" or config.side.init is not None:
        main = load(weights)
        side = make_side(main)
    else:
        side = make_side(load(weights.plain))
        gc.collect()  # of what has been read nothing may stay, not even in a cycle of references
        main = load(weights)
        spec.check_fit(main, side)  # also lends it this main network's modules, where it borrows any
    low = config.side
    if low.lora_rank is not None:
        add_low_rank(side, low.lora_rank, alpha=low.lora_alpha, targets=low.lora_targets)
    return main, side
