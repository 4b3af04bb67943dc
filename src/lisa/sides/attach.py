"""``lisa.attach``: the core's ``attach``, with the layer names and a dry run of the side networks we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line
from lisa.core import REFERENCE_WEIGHT, LikelihoodAligner
from lisa.core import attach as attach_to
from lisa.core.decoder import MIN_CHANNELS
from lisa.core.feature_tap import Select
from lisa.core.layers import DryRun, unwrapped
from lisa.core.residual import SignalToNoise
from lisa.sides import flux, hunyuan, qwen, sana, sd3, svd, wan_vace, zimage
from lisa.sides.layers import layer_names, zeros_like

_T = TypeVar("_T")


def attach(
    side_network: nn.Module,
    layer: str | Sequence[str],
    *,
    out_channels: int,
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
    """Attach likelihood score alignment (arXiv 2606.27192) to a side network.

    Every parameter is built on return, so that the optimiser can be made at once. The side network keeps its class,
    keys and cost, and ``remove()`` leaves it exactly as it was.

    Args:
        side_network: the network that learns, such as diffusers' ``ControlNetModel``; wrapped by DDP or
            ``torch.compile`` also does.
        layer: the layer to align, or several: ``down.N``, ``mid``, ``block.N`` as the side network has them, or the
            dotted path of any module. The reference for Stable Diffusion is ``down.5``. A T2I-Adapter has
            ``adapter.N``, the outputs of its blocks: ``tap="output"``, and ``x_t_channels``.
        out_channels: channels of the model's target (4 for Stable Diffusion).
        stride: of the layer's feature against the latent, a power of two; one number, or one per layer. Measured where
            not given.
        dry_run: runs one forward of the side network and returns the (height, width) of its latent. Needed, without
            ``stride``, for side networks other than diffusers' UNet ControlNets.
        weight: of the alignment in the loss; the reference is 0.2.
        weighting: by noise level: ``plain`` (the reference), ``normalised``, ``min-snr``.
        tap: the ``input`` or the ``output`` of the layer.
        select: cuts the image's tokens out of a feature that holds others too: (feature, latent (H, W)) -> feature.
            Known for diffusers' side networks.
        x_t_channels: give the decoder the noisy latent of that many channels too; for side networks that do not see it.
        snr: signal-to-noise ratio by timestep (0..1000), for weightings that need it (a process's
            ``snr_of_decoder_time``).
        prediction: what the model predicts, for weightings that need it.
        balanced: ``weight`` is the ratio of the alignment's gradient to the main loss's at the tapped feature.
        decoder_channels: the decoder's halving of channels stops there; the reference is 64.
        reads_prior: give the decoder the prior too, beside the noisy latent (``x_t_channels``).

    Raises:
        LisaError: unknown layer (with the names there are, and the nearest path), nothing to measure a stride from, an
            impossible stride, unknown weighting or tap, a bad weight.

    Example:
        >>> aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)
        >>> optimiser = torch.optim.AdamW([*controlnet.parameters(), *aligner.parameters()])
        >>> ...  # the usual controlled forward; the feature is caught
        >>> terms = aligner(target=target, prior=prior, timesteps=t)
        >>> loss = mse(controlled, target) + terms.loss
    """
    network = unwrapped(side_network)
    return attach_to(
        network,
        layer,
        out_channels=out_channels,
        names=layer_names(network),
        stride=stride,
        dry_run=dry_run if dry_run is not None else default_dry_run(network),
        weight=weight,
        weighting=weighting,
        tap=tap,
        select=select if select is not None else default_select(network),
        x_t_channels=x_t_channels,
        snr=snr,
        prediction=prediction,
        balanced=balanced,
        decoder_channels=decoder_channels,
        reads_prior=reads_prior,
    )


def default_select(network: nn.Module) -> Select | None:
    """What cuts the image's tokens out of the features of ``network``, or None where they hold nothing else."""
    return _known(network, _SELECTS)


def default_dry_run(network: nn.Module) -> DryRun | None:
    """A dry run of ``network`` on zeros, or None where its kind is not known.

    Kinds are told by the names of the classes ``network`` derives from, so that diffusers need not be imported.
    """
    run = _known(network, _DRY_RUNS)
    if run is None:
        return None

    def dry_run() -> tuple[int, int]:
        try:
            return run(network)
        except Exception as error:  # a subclass with arguments of its own, a class of another version
            raise LisaError(
                f"the {type(network).__name__} cannot be run on zeros to measure a stride: {first_line(error)}",
                "Pass stride=, or dry_run=, a function that runs it once and returns its latent's (height, width)",
            ) from error

    return dry_run


def _known(network: nn.Module, table: Mapping[str, _T]) -> _T | None:
    """What ``table`` has for the nearest class that ``network`` derives from."""
    return next((table[base.__name__] for base in type(network).__mro__ if base.__name__ in table), None)


def _run_controlnet(network: Any) -> tuple[int, int]:
    """``ControlNetModel`` of SD 1.x, 2.x and SDXL."""
    latent, zeros = _latent_side(network), zeros_like(network)
    pixels = zeros(1, network.config.conditioning_channels, *[latent * _condition_factor(network)] * 2)
    _call(network, latent, zeros, controlnet_cond=pixels)
    return latent, latent


def _run_union(network: Any) -> tuple[int, int]:
    """``ControlNetUnionModel``: a list of conditions, each with its kind."""
    latent, zeros = _latent_side(network), zeros_like(network)
    pixels = zeros(1, network.config.conditioning_channels, *[latent * _condition_factor(network)] * 2)
    kinds = zeros(1, network.config.num_control_type)
    _call(network, latent, zeros, controlnet_cond=[pixels], control_type=kinds, control_type_idx=[0])
    return latent, latent


def _run_adapter(network: Any) -> tuple[int, int]:
    """``T2IAdapter``: it reads the condition alone. An XL adapter's first map is at half the latent's size."""
    config, pixels = network.config, 2 * network.total_downscale_factor
    network(zeros_like(network)(1, config.in_channels, pixels, pixels))
    factor = config.downscale_factor // (2 if config.adapter_type == "full_adapter_xl" else 1)
    return pixels // factor, pixels // factor


def _call(network: Any, latent: int, zeros: Callable[..., Tensor], **condition: Any) -> None:
    config = network.config
    sample = zeros(1, config.in_channels, latent, latent)
    text = zeros(1, 8, config.cross_attention_dim)
    time = torch.zeros(1, dtype=torch.int64, device=sample.device)
    network(sample, time, text, **condition, **_additions(config, zeros), return_dict=False)


def _additions(config: Any, zeros: Callable[..., Tensor]) -> dict[str, Any]:
    """Pooled text and picture sizes (SDXL), class labels: only where the configuration asks for them."""
    given: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        sizes = 6  # height and width: original, crop, target
        pooled = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": zeros(1, pooled), "time_ids": zeros(1, sizes)}
    if config.class_embed_type == "projection":
        given["class_labels"] = zeros(1, config.projection_class_embeddings_input_dim)
    elif config.class_embed_type == "timestep":
        given["class_labels"] = zeros(1)
    elif config.class_embed_type is None and config.num_class_embeds is not None:
        given["class_labels"] = zeros(1).long()
    return given


def _latent_side(network: Any) -> int:
    """Two cells are left at the deepest level: enough to tell its stride, cheap on a large network."""
    return int(2 ** len(network.config.block_out_channels))


def _condition_factor(network: Any) -> int:
    return int(2 ** (len(network.config.conditioning_embedding_out_channels) - 1))


# A new kind is one function and one line.
_DRY_RUNS: dict[str, Callable[[Any], tuple[int, int]]] = {
    "ControlNetModel": _run_controlnet,
    "ControlNetUnionModel": _run_union,
    "T2IAdapter": _run_adapter,
    "HunyuanDiT2DControlNetModel": hunyuan.run_on_zeros,
    "SD3ControlNetModel": sd3.run_sd3_controlnet,
    "FluxControlNetModel": flux.run_flux_controlnet,
    "SanaControlNetModel": sana.run_on_zeros,
    "QwenImageControlNetModel": qwen.run_on_zeros,
    "ZImageControlNetModel": zimage.run_on_zeros,
    "SVDControlNet": svd.run_on_zeros,
    "WanVACEBranch": wan_vace.run_on_zeros,
    "WanVACETransformer3DModel": wan_vace.run_fused_on_zeros,
}
_SELECTS: dict[str, Select] = {"ZImageControlNetModel": zimage.image_tokens}
