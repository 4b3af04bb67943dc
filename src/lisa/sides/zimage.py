"""``ZImageControlNetModel`` beside Z-Image: control layers that borrow embedders and refiners of the main network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from lisa.common.errors import LisaError
from lisa.core.padding import unpadded
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer, SideOptions
from lisa.sides.blocks import ATTENTION
from lisa.sides.copying import common_configuration, copy_weights
from lisa.sides.layers import layer_names, zeros_like

_PATCH = 2  # cells of the latent per token side, as the pipelines call the network
_EVERY = 5  # one control layer for so many of the main network's: the custom of the public ones
_BORROWED = (
    *("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner", "context_refiner"),
    *("x_pad_token", "cap_pad_token"),
)


class ZImageControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`.

    What diffusers' ``from_transformer`` would make it share with the main network is lent to it during each forward
    only, so that ``module`` has its own parameters and weights and no others, to train, copy and save.

    Args:
        module: of diffusers, without what it borrows.
    """

    kind = "ZImageControlNetModel"
    reads = "latents"
    lora_targets = (*ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.lender: Any = None
        module.gradient_checkpointing = False  # diffusers' forward reads it, and nothing there sets it

    @classmethod
    def from_main(cls, network: Any, options: SideOptions) -> ZImageControlNetSide:
        """Copies of every fifth layer (or ``options.depth`` of them) and of the refiner of the noisy latent.

        Raises:
            LisaError: there are not so many layers.
        """
        from diffusers import ZImageControlNetModel as Kind

        layers = network.config.n_layers
        depth = max(layers // _EVERY, 1) if options.depth is None else options.depth
        if not 1 <= depth <= layers:
            raise LisaError(f"side.depth is {depth}, the main network has {layers} layers", f"Choose 1 to {layers}")
        places = [i * layers // depth for i in range(depth)]
        own = {"control_layers_places": places, "control_in_dim": network.config.in_channels}
        module = Kind(**common_configuration(Kind, network, **own))
        parts = {f"control_layers.{i}": network.layers[place] for i, place in enumerate(places)}
        parts |= {"control_noise_refiner": network.noise_refiner, "control_all_x_embedder": network.all_x_embedder}
        weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        new = ["control_layers.0.before_proj", *[f"control_layers.{i}.after_proj" for i in range(depth)]]
        copy_weights(module, weights, new)
        side = cls(module.float())
        side.settle(network)
        return side

    def settle(self, network: Any) -> None:
        """Borrow from this main network from now on."""
        self.lender = network

    def whole(self) -> AbstractContextManager[None]:
        """With the main network's embedders and refiners.

        Raises:
            LisaError: there is no main network to borrow from yet.
        """
        if self.lender is None:
            raise LisaError("this side network has no main network to borrow from", "Call its pair's check_fit first")
        return lent(self.module, self.lender)

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """(B, tokens, D) by number of the main network's layer. Version 2's further channels (inpainting) are zero.

        Raises:
            LisaError: there is no main network to borrow from yet.
        """
        module, lender = self.module, self.lender
        missing = module.config.control_in_dim - condition.shape[1]
        with self.whole():
            return self.callee(
                list(in_dtype_of(lender, x_t).unsqueeze(2)),
                1 - t,  # as the main network counts
                unpadded(in_dtype_of(lender, context["cap_feats"]), context["cap_mask"]),
                list(pad(in_dtype_of(module, condition), (0, 0, 0, 0, 0, missing)).unsqueeze(2)),
            )

    def layers(self) -> list[Layer]:
        """All have the same width; features hold the image's tokens first (:func:`image_tokens`)."""
        return [Layer(name, path, self.module.config.dim, _PATCH) for name, path in layer_names(self.module).items()]

    def zero_modules(self) -> list[nn.Module]:
        """The projections at the way out of each layer, and the condition's at the way in."""
        layers = self.module.control_layers
        return [*[layer.after_proj for layer in layers], layers[0].before_proj]


@contextmanager
def lent(module: Any, network: Any) -> Iterator[None]:
    """``module`` with the main network's embedders and refiners while the block runs, and without them after it.

    Raises:
        LisaError: the main network is offloaded by layer: what it has beside its layers is then in memory only while it
            runs itself, and the side network would read whatever lies there.
    """
    if network.x_pad_token.is_meta:
        raise LisaError(
            "the main network is offloaded by layer, so the tokens that this side network borrows are not in memory",
            "Offload it by groups or as a whole (enable_group_offload(), enable_model_cpu_offload())",
        )
    type(module).from_transformer(module, network)
    try:
        yield
    finally:
        for name in _BORROWED:
            delattr(module, name)
            setattr(module, name, None)


def image_tokens(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Of a feature (B, image, padding, text, padding; C) the image's tokens, for a latent of ``size`` (H, W)."""
    return feature[:, : (size[0] // _PATCH) * (size[1] // _PATCH)]


def run_on_zeros(network: Any) -> tuple[int, int]:
    """One forward of a ``ZImageControlNetModel`` that has been made to share a main network's modules."""
    config, zeros, side = network.config, zeros_like(network), 2 * _PATCH
    if network.t_embedder is None:
        raise ValueError("it shares no main network's modules yet (from_transformer)")
    channels = network.all_x_embedder["2-1"].in_features // _PATCH**2
    latent, text = zeros(channels, 1, side, side), zeros(8, network.cap_embedder[1].in_features)
    network([latent], zeros(1), [text], [zeros(config.control_in_dim, 1, side, side)])
    return side, side
