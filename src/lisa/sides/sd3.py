"""``SD3ControlNetModel`` beside ``SD3Transformer2DModel``; also the layout of the 8B ControlNets of SD3.5 large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer, SideOptions
from lisa.sides.blocks import LORA_TARGETS, choose_depth, freeze_text_end, freeze_unused, lent_config
from lisa.sides.layers import layer_names, zeros_like


def entered(depth: int, blocks: int) -> set[int]:
    """Blocks of a ControlNet that reach a transformer: after each of its blocks but the last, spread by division."""
    interval = blocks / depth
    return {int(block / interval) for block in range(blocks - 1)}


class SD3ControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`.

    Its configuration says how the pipeline will use it, and training follows: with
    ``force_zeros_for_pooled_projection`` (diffusers' default) the pooled text is zero and the condition's latent is
    not shifted.
    """

    kind = "SD3ControlNetModel"
    reads = "latents"
    lora_targets = LORA_TARGETS

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        config = module.config
        self.latent_limit = config.pos_embed_max_size * config.patch_size if config.use_pos_embed else None
        self._freeze(set(range(len(module.controlnet_blocks))))
        if module.config.force_zeros_for_pooled_projection:
            # Its input is always zero, and so is its gradient.
            module.time_text_embed.text_embedder.linear_1.weight.requires_grad_(False)

    @classmethod
    def from_main(cls, network: Any, options: SideOptions) -> SD3ControlNetSide:
        """A copy of the main network's first blocks: half of them, unless ``options`` say otherwise.

        Raises:
            LisaError: blocks of that depth would reach nothing.
        """
        from diffusers import SD3ControlNetModel

        blocks = network.config.num_layers
        depth = choose_depth(options, blocks, entered, custom=blocks // 2)
        with lent_config(network):
            module = SD3ControlNetModel.from_transformer(network, num_layers=depth, num_extra_conditioning_channels=0)
        return cls(module.float())

    def settle(self, network: Any) -> None:
        """Freeze what cannot reach this main network (side networks made elsewhere may be deeper than it takes up)."""
        self._freeze(entered(len(self.module.controlnet_blocks), network.config.num_layers))

    def _freeze(self, used: set[int]) -> None:
        module = self.module
        freeze_unused(module.transformer_blocks, module.controlnet_blocks, used)
        if module.context_embedder is not None:
            freeze_text_end(module.transformer_blocks[max(used)])

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """One residual (B, N, D) per block. ``context`` also holds what ``StableDiffusion3Main.complete`` adds."""
        module = self.module
        pooled = context["pooled_projections"]
        if module.config.force_zeros_for_pooled_projection:
            pooled, condition = torch.zeros_like(pooled), condition + context["vae_shift"]
        # The 8B layout reads no text, and x_t as the main network embeds it.
        text = None if module.context_embedder is None else context["encoder_hidden_states"]
        return self.callee(
            hidden_states=in_dtype_of(module, context["tokens"] if module.pos_embed is None else x_t),
            controlnet_cond=in_dtype_of(module, condition),
            encoder_hidden_states=None if text is None else in_dtype_of(module, text),
            pooled_projections=in_dtype_of(module, pooled),
            timestep=t,
            return_dict=False,
        )[0]

    def layers(self) -> list[Layer]:
        """One per block; a token is a patch of the latent."""
        patch = self.module.config.patch_size
        return [
            Layer(name, path, self.module.get_submodule(path).in_features, patch)
            for name, path in layer_names(self.module).items()
        ]

    def zero_modules(self) -> list[nn.Module]:
        """The linear layers at the way out, and the embedding of the condition."""
        return [*self.module.controlnet_blocks, self.module.pos_embed_input]


def run_sd3_controlnet(network: Any) -> tuple[int, int]:
    """A dry run for ``lisa.attach``: two by two tokens."""
    config, zeros = network.config, zeros_like(network)
    side = 2 * config.patch_size
    network(
        zeros(1, 4, network.inner_dim) if network.pos_embed is None else zeros(1, config.in_channels, side, side),
        zeros(1, config.in_channels + config.extra_conditioning_channels, side, side),
        encoder_hidden_states=None if network.context_embedder is None else zeros(1, 8, config.joint_attention_dim),
        pooled_projections=zeros(1, config.pooled_projection_dim),
        timestep=zeros(1),
        return_dict=False,
    )
    return side, side
