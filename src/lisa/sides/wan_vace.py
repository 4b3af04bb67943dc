"""Wan's VACE branch (arXiv 2503.07598) beside Wan: copies of some of its blocks, which read latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import read_json
from lisa.core.precision import as_stored, in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer, SideOptions
from lisa.sides.blocks import ATTENTION
from lisa.sides.copying import common_configuration, copy_weights
from lisa.sides.layers import layer_names, zeros_like
from lisa.sides.loading import load_module

#: Blocks of Wan -> blocks of the public VACE for it (1.3B); others have one for five (14B).
_PUBLIC_DEPTHS = {30: 15}
_EVERY = 5
_FUSED = "WanVACETransformer3DModel"


class WanVACESide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`.

    What embeds the noisy latent, text and time is the main network's, frozen, and used in each forward.

    Args:
        module: a ``WanVACEBranch``.
    """

    kind = "WanVACEBranch"
    package = "lisa.networks.wan_vace"
    reads = "latents"
    lora_targets = (*ATTENTION, "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.lender: Any = None

    @classmethod
    def from_folder(cls, source: str, default_config: Callable[[], Mapping[str, Any]] | None = None) -> WanVACESide:
        """Also from the folder of a fused model (of a public VACE, ``transformer/``), of which the branch is taken."""
        config = Path(source) / "config.json"
        if not (config.is_file() and read_json(config).get("_class_name") == _FUSED):
            return super().from_folder(source, default_config)
        from lisa.networks.wan_vace import WanVACEBranch as Kind

        return cls(Kind.of(load_module(_FUSED, source)).float())

    @classmethod
    def from_main(cls, network: Any, options: SideOptions, condition_channels: int, factor: int) -> WanVACESide:
        """Copies of evenly spread blocks: as many as in the public VACE, or ``options.depth``.

        Args:
            network: a ``WanTransformer3DModel``.
            options: of the side network.
            condition_channels: of the latents that it reads.
            factor: of the autoencoder, in space: the mask comes as so many by so many pixels per cell.

        Raises:
            LisaError: there are not so many blocks.
        """
        from lisa.networks.wan_vace import WanVACEBranch as Kind

        blocks = network.config.num_layers
        depth = _PUBLIC_DEPTHS.get(blocks, max(blocks // _EVERY, 1)) if options.depth is None else options.depth
        if not 1 <= depth <= blocks:
            raise LisaError(f"side.depth is {depth}, the main network has {blocks} blocks", f"Choose 1 to {blocks}")
        places = [number * blocks // depth for number in range(depth)]
        own = {"vace_layers": places, "vace_in_channels": condition_channels + factor**2}
        module = Kind(**common_configuration(Kind, network, **own))
        weights = {
            f"vace_blocks.{number}.{name}": value
            for number, place in enumerate(places)
            for name, value in network.blocks[place].state_dict().items()
        }
        ends = [f"vace_blocks.{number}.proj_out" for number in range(depth)]
        copy_weights(module, weights, new=("vace_patch_embedding", "vace_blocks.0.proj_in", *ends))
        side = cls(module.float())
        side.settle(network)
        for zero in side.zero_modules():
            for parameter in zero.parameters():
                nn.init.zeros_(parameter)
        return side

    def settle(self, network: Any) -> None:
        """Use this main network's embedders from now on."""
        self.lender = network

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """(B, tokens, D) by number of the main network's block. The mask says that all is to be made.

        Raises:
            LisaError: there is no main network yet whose embedders it could use.
        """
        module, network = self.module, self.lender
        if network is None:
            raise LisaError("this side network has no main network to borrow from", "Call its pair's check_fit first")
        with torch.no_grad(), as_stored(network):
            hidden = network.patch_embedding(in_dtype_of(network, x_t)).flatten(2).transpose(1, 2)
            text = in_dtype_of(network, context["encoder_hidden_states"])
            _, times, text, _ = network.condition_embedder(t, text, None)
            positions = network.rope(x_t)
        missing = module.config.vace_in_channels - condition.shape[1]
        mask = condition.new_ones(condition.shape[0], missing, *condition.shape[2:])
        hints = self.callee(
            in_dtype_of(module, hidden),
            in_dtype_of(module, text),
            in_dtype_of(module, torch.cat([condition, mask], dim=1)),
            in_dtype_of(module, times.unflatten(1, (6, -1))),
            positions,
        )
        return dict(zip(module.config.vace_layers, hints, strict=True))

    def layers(self) -> list[Layer]:
        """All have the same width and see the tokens of the latent's patches, frame by frame."""
        config = self.module.config
        width = config.num_attention_heads * config.attention_head_dim
        return [Layer(name, path, width, config.patch_size[1]) for name, path in layer_names(self.module).items()]

    def zero_modules(self) -> list[nn.Module]:
        """The projections at the way out of each block, and the condition's at the way in."""
        blocks = self.module.vace_blocks
        return [*[block.proj_out for block in blocks], blocks[0].proj_in]

    def new_parameters(self) -> list[nn.Parameter]:
        """Those of the zero modules, and of what makes tokens of the condition."""
        return [*super().new_parameters(), *self.module.vace_patch_embedding.parameters()]


def run_on_zeros(network: Any) -> tuple[int, int]:
    """One forward of a ``WanVACEBranch`` on a clip of one frame: the size of its latent."""
    config, zeros, side = network.config, zeros_like(network), 2 * network.config.patch_size[1]
    width = config.num_attention_heads * config.attention_head_dim
    ones = zeros(1, 4, 1, config.attention_head_dim) + 1
    control = zeros(1, config.vace_in_channels, config.patch_size[0], side, side)
    network(zeros(1, 4, width), zeros(1, 8, width), control, zeros(1, 6, width), (ones, 0 * ones))
    return side, side


def run_fused_on_zeros(network: Any) -> tuple[int, int]:
    """The same of diffusers' ``WanVACETransformer3DModel``, for a training loop of one's own."""
    config, zeros, side = network.config, zeros_like(network), 2 * network.config.patch_size[1]
    clip = (config.patch_size[0], side, side)
    network(
        zeros(1, config.in_channels, *clip),
        zeros(1),
        zeros(1, 8, config.text_dim),
        control_hidden_states=zeros(1, config.vace_in_channels, *clip),
    )
    return side, side
