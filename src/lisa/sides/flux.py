"""``FluxControlNetModel`` beside ``FluxTransformer2DModel``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.core.packing import pack
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer, SideOptions
from lisa.sides.blocks import LORA_TARGETS, choose_depth, freeze_text_end, freeze_unused, lent_config
from lisa.sides.layers import layer_names, zeros_like

_DEPTH = 4  # double blocks; diffusers' own custom
_PATCH = 2  # cells of the latent per token side


def entered(depth: int, blocks: int) -> set[int]:
    """Blocks of a ControlNet that reach a transformer: after each of its blocks, in equal runs."""
    interval = -(-blocks // depth)
    return {block // interval for block in range(blocks)}


class FluxControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`. Latents come as maps and are packed here."""

    kind = "FluxControlNetModel"
    reads = "latents"
    lora_targets = (*LORA_TARGETS, "proj_mlp", "proj_out")  # single blocks have one feed-forward layer, then one more

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if not len(module.single_transformer_blocks):
            freeze_text_end(module.transformer_blocks[-1])

    @classmethod
    def from_main(cls, network: Any, options: SideOptions) -> FluxControlNetSide:
        """A copy of the main network's first double blocks (four, unless ``options`` say otherwise), no single ones.

        Raises:
            LisaError: blocks of that depth would reach nothing.
        """
        from diffusers import FluxControlNetModel

        config = network.config
        with lent_config(network, "out_channels"):  # which a ControlNet does not know
            module = FluxControlNetModel.from_transformer(
                network,
                num_layers=choose_depth(options, config.num_layers, entered, custom=_DEPTH),
                num_single_layers=0,
                # Its defaults are Flux.1's, whatever the transformer has.
                attention_head_dim=config.attention_head_dim,
                num_attention_heads=config.num_attention_heads,
            )
        return cls(module.float())

    def settle(self, network: Any) -> None:
        """Freeze what cannot reach this main network (of six double blocks, say, Flux.1 takes up five)."""
        module, config = self.module, network.config
        singles = module.single_transformer_blocks
        if len(singles):
            used = entered(len(singles), config.num_single_layers)
            freeze_unused(singles, module.controlnet_single_blocks, used)
        if len(module.transformer_blocks):
            used = entered(len(module.transformer_blocks), config.num_layers)
            # Single blocks read what the last double block gives, wherever the main network takes it up.
            freeze_unused([] if len(singles) else module.transformer_blocks, module.controlnet_blocks, used)
            if not len(singles):
                freeze_text_end(module.transformer_blocks[max(used)])

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(double, single)``: residuals (B, N, D) per block, None where there are none."""
        module = self.module
        return self.callee(
            hidden_states=in_dtype_of(module, pack(x_t)),
            controlnet_cond=in_dtype_of(module, pack(condition)),
            timestep=t,
            guidance=context["guidance"] if module.config.guidance_embeds else None,
            encoder_hidden_states=in_dtype_of(module, context["encoder_hidden_states"]),
            pooled_projections=in_dtype_of(module, context["pooled_projections"]),
            txt_ids=context["txt_ids"],
            img_ids=context["img_ids"],
            return_dict=False,
        )

    def layers(self) -> list[Layer]:
        """One per block: of single blocks too, the image's tokens only."""
        return [
            Layer(name, path, self.module.get_submodule(path).in_features, _PATCH)
            for name, path in layer_names(self.module).items()
        ]

    def zero_modules(self) -> list[nn.Module]:
        """The linear layers at the way out, and the embedding of the condition."""
        module = self.module
        return [*module.controlnet_blocks, *module.controlnet_single_blocks, module.controlnet_x_embedder]


def run_flux_controlnet(network: Any) -> tuple[int, int]:
    """A dry run for ``lisa.attach``: two by two tokens, eight of text."""
    config, zeros = network.config, zeros_like(network)
    network(
        zeros(1, 4, config.in_channels),
        zeros(1, 4, config.in_channels),
        timestep=zeros(1),
        guidance=zeros(1) if config.guidance_embeds else None,
        encoder_hidden_states=zeros(1, 8, config.joint_attention_dim),
        pooled_projections=zeros(1, config.pooled_projection_dim),
        txt_ids=zeros(8, len(config.axes_dims_rope)),
        img_ids=zeros(4, len(config.axes_dims_rope)),
        return_dict=False,
    )
    return 2 * _PATCH, 2 * _PATCH
