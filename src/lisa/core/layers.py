"""Finding a layer of the side network by name, and measuring the channels and the stride of its feature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError, nearest
from lisa.core.decoder import token_patch
from lisa.core.feature_tap import FeatureTap, Select
from lisa.core.frames import fold

#: Runs one forward of the side network and returns the (height, width) of the latent it was given: a picture's, or that
#: of a clip of one frame.
DryRun = Callable[[], tuple[int, int]]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DDP and ``torch.compile`` wrappers: the one whose layers have their own names."""
    while True:
        inner = getattr(network, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def resolve_path(network: nn.Module, layer: str, names: Mapping[str, str]) -> str:
    """The dotted path of ``layer``, a friendly name or a path itself.

    Raises:
        LisaError: there is no such layer; the message lists the names, and the nearest name or path.
    """
    path = names.get(layer, layer)
    modules = {name for name, _ in network.named_modules(remove_duplicate=False) if name}
    if path in modules:
        return path
    hint = nearest(layer, [*names, *sorted(modules)])
    raise LisaError(
        f"{type(network).__name__} has no layer {layer!r}" + (f" ({hint})" if hint else ""),
        "Any module's dotted path, as listed by named_modules(), does too",
        choices=names or sorted(name for name in modules if "." not in name),
    )


def given_strides(layers: Sequence[str], stride: int | Sequence[int] | None) -> dict[str, int | None]:
    """The stride of each layer as the user gave it, None where it is to be measured.

    Raises:
        LisaError: not one number or one per layer, or not powers of two.
    """
    if stride is None:
        return dict.fromkeys(layers)
    strides = [stride] * len(layers) if isinstance(stride, int) else list(stride)
    if len(strides) != len(layers):
        raise LisaError(f"{len(strides)} strides for {len(layers)} layers", "Give one number, or one per layer")
    for value in strides:
        if value < 1 or value & (value - 1):
            raise LisaError(f"a stride of {value}", "Give a power of two: 1, 2, 4, 8, ...")
    return dict(zip(layers, strides, strict=True))


def layer_sizes(
    network: nn.Module,
    paths: Mapping[str, str],
    tap: str,
    strides: Mapping[str, int | None],
    dry_run: DryRun | None,
    select: Select | None = None,
) -> dict[str, tuple[int, int]]:
    """(channels, stride) of each layer: what was given or can be read off the module, else measured.

    Raises:
        LisaError: something has to be measured and there is no dry run, or the feature is neither map nor tokens.
    """
    known = {name: (_channels(network.get_submodule(path), tap), strides[name]) for name, path in paths.items()}
    if any(None in pair for pair in known.values()):
        if dry_run is None:
            name, (channels, _) = next((name, pair) for name, pair in known.items() if None in pair)
            missing = "channels" if channels is None else "stride"
            remedy = "Pass dry_run=, a function that runs the side network once"
            raise LisaError(
                f"the {missing} of layer {name!r} cannot be told without running the side network",
                remedy + (", or stride=" if missing == "stride" else ", or tap a convolution or a linear layer"),
            )
        for name, (channels, measured) in _measured(network, paths, tap, dry_run, select).items():
            known[name] = (channels, known[name][1] or measured)
    return {name: (channels, stride) for name, (channels, stride) in known.items() if channels and stride}


def _channels(module: nn.Module, tap: str) -> int | None:
    module = getattr(module, "base_layer", module)  # a low-rank adapter around the layer
    side = "in" if tap == "input" else "out"
    if isinstance(module, nn.Linear):
        return int(getattr(module, f"{side}_features"))
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return int(getattr(module, f"{side}_channels"))
    return None


def _measured(
    network: nn.Module, paths: Mapping[str, str], tap: str, dry_run: DryRun, select: Select | None
) -> dict[str, tuple[int, int]]:
    taps = {name: FeatureTap(network, path, tap, name=name, select=select) for name, path in paths.items()}
    try:
        with torch.no_grad(), _untouched(network), ExitStack() as stack:
            for each in taps.values():
                stack.enter_context(each.observing())
            latent = dry_run()
            features = {name: each.read(latent) for name, each in taps.items()}
    finally:
        for each in taps.values():
            each.remove()
    return {name: _channels_and_stride(name, feature, latent) for name, feature in features.items()}


def _channels_and_stride(name: str, feature: Tensor, latent: tuple[int, int]) -> tuple[int, int]:
    height, width = latent
    shape, feature = tuple(feature.shape), fold(feature)
    if feature.ndim == 3:
        channels, stride = feature.shape[2], token_patch(feature.shape[1], latent)
    elif feature.ndim == 4:
        ratio = max(height, width) / max(feature.shape[2:])  # of the long side, which rounding changes least
        channels, stride = feature.shape[1], 2 ** max(round(math.log2(ratio)), 0)
    else:
        raise LisaError(f"the feature of layer {name!r} has shape {shape}", "Tap a layer of maps or tokens")
    fits = feature.ndim == 3 or all(
        full // stride <= given <= -(-full // stride) for given, full in zip(feature.shape[2:], latent, strict=True)
    )
    if stride & (stride - 1) or not fits:
        raise LisaError(
            f"the feature of layer {name!r}, {shape}, is not {height}x{width} at a stride that is a power of two",
            "Tap another layer",
        )
    return channels, stride


@contextmanager
def same_randomness(network: nn.Module) -> Iterator[None]:
    """Random numbers drawn inside leave torch's global generators as they were, also the network's device's."""
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Runs what is inside in eval mode, and puts back modes, buffers and random state."""
    modes = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with same_randomness(network):
        try:
            network.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)
