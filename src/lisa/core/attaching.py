"""``attach``: from a side network and the name of a layer to an aligner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lisa.common.errors import LisaError, choose
from lisa.core.aligner import REFERENCE_WEIGHT, LikelihoodAligner, check_weight
from lisa.core.decoder import MIN_CHANNELS, LikelihoodDecoder, hidden_channels
from lisa.core.feature_tap import TAPS, FeatureTap, Select
from lisa.core.layers import DryRun, given_strides, layer_sizes, resolve_path, same_randomness, unwrapped
from lisa.core.residual import SignalToNoise, make_weighting


def attach(
    side_network: nn.Module,
    layer: str | Sequence[str],
    *,
    out_channels: int,
    names: Mapping[str, str] | None = None,
    stride: int | Sequence[int] | None = None,
    dry_run: DryRun | None = None,
    weight: float = REFERENCE_WEIGHT,
    weighting: str = "plain",
    tap: str = "input",
    select: Select | None = None,
    x_t_channels: int = 0,
    snr: SignalToNoise | None = None,
    prediction: str = "epsilon",
    balanced: bool = False,
    decoder_channels: int = MIN_CHANNELS,
    reads_prior: bool = False,
) -> LikelihoodAligner:
    """Attach an aligner to a side network. Every parameter is built on return, on the side network's device, in fp32.

    The global random generators are left as they were: an arm with an aligner sees the same draws as one without.

    Args:
        side_network: the network that learns; wrapped by DDP or ``torch.compile`` also does.
        layer: the layer to align, or several: a name from ``names``, or the dotted path of any module.
        out_channels: channels of the model's target (4 for Stable Diffusion).
        names: friendly layer names and the dotted paths they stand for.
        stride: of the layer's feature against the latent, a power of two; one number, or one per layer. Measured by
            ``dry_run`` where not given.
        dry_run: runs one forward of the side network and returns the (height, width) of its latent. Run at most once,
            in eval mode and without gradients; random state, modes and buffers are put back.
        weight: of the alignment in the loss. At 0 there is no decoder and no hook, and there never will be.
        weighting: by noise level: ``plain`` (the reference), ``normalised``, ``min-snr``.
        tap: the ``input`` or the ``output`` of the layer.
        select: cuts the image's tokens out of a feature that holds others too: (feature, latent (H, W)) -> feature.
        x_t_channels: give the decoder the noisy latent of that many channels too; for side networks that do not see it.
        snr: signal-to-noise ratio by timestep (0..1000), for weightings that need it.
        prediction: what the model predicts, for weightings that need it.
        balanced: ``weight`` is the ratio of the alignment's gradient to the main loss's at the tapped feature, which
            must be one.
        decoder_channels: the decoder's halving of channels stops there.
        reads_prior: give the decoder the prior too, beside the noisy latent (``x_t_channels``). Neither tells anything
            of the residual, whose mean given x_t is zero: what is read must still come from the feature, but that need
            then hold no more than what the condition says.

    Raises:
        LisaError: unknown layer (with the names there are, and the nearest path), nothing to measure a stride or
            channels from, an impossible stride, unknown weighting or tap, a bad weight, ``decoder_channels`` that make
            no difference to any of the decoders.

    Example:
        >>> aligner = attach(network, "mid", out_channels=4, names={"mid": "controlnet_mid_block"}, stride=8)
        >>> optimiser = torch.optim.AdamW([*network.parameters(), *aligner.parameters()])
    """
    network = unwrapped(side_network)
    names = names or {}
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not layers or len(set(layers)) < len(layers):
        raise LisaError(f"cannot align the layers {layers}", "Name at least one layer, and each once")
    paths = {name: resolve_path(network, name, names) for name in layers}
    choose("tap", tap, TAPS)
    check_weight(weight)
    chosen_weighting = make_weighting(weighting, snr=snr, prediction=prediction)
    if balanced and len(layers) > 1:
        raise LisaError(
            f"balanced with {len(layers)} layers: what arrives at one of them holds the alignment of those behind it",
            "Align one layer, or leave balanced out",
        )
    if reads_prior and not x_t_channels:
        raise LisaError("reads_prior without x_t_channels", "A decoder that is given the prior is given x_t too")
    strides = given_strides(layers, stride)
    if weight == 0:
        return LikelihoodAligner({}, {}, weight=0.0, weighting=chosen_weighting)
    sizes = layer_sizes(network, paths, tap, strides, dry_run, select)
    _check_channels(sizes, decoder_channels)
    parameter = next(network.parameters(), torch.zeros(()))
    with same_randomness(network):
        decoders = {
            name: LikelihoodDecoder(
                channels,
                out_channels,
                int(math.log2(size)),
                x_t_channels=x_t_channels + (out_channels if reads_prior else 0),
                min_channels=decoder_channels,
            )
            for name, (channels, size) in sizes.items()
        }
    taps = {name: FeatureTap(network, path, tap, name=name, select=select) for name, path in paths.items()}
    aligner = LikelihoodAligner(
        taps, decoders, weight=weight, weighting=chosen_weighting, balanced=balanced, reads_prior=reads_prior
    )
    return aligner.to(parameter.device)


def _check_channels(sizes: Mapping[str, tuple[int, int]], decoder_channels: int) -> None:
    """Refuse a decoder size that is none: two arms would be trained, and be the same."""
    found, usual = (
        {name: hidden_channels(channels, int(math.log2(size)), least) for name, (channels, size) in sizes.items()}
        for least in (decoder_channels, MIN_CHANNELS)
    )
    if decoder_channels != MIN_CHANNELS and found == usual:
        least = [channels[-1] for name, channels in usual.items() if sizes[name][1] > 1]
        told = "; ".join(f"{name}: {', '.join(map(str, channels))}" for name, channels in usual.items())
        raise LisaError(
            f"decoder_channels={decoder_channels} changes nothing: the decoder's channels ({told}) are the same with "
            f"{MIN_CHANNELS}, since they are halved per doubling and no further",
            f"Leave it out, or give more than {min(least)}"
            if least
            else "Leave it out: at full size there is no halving",
        )
