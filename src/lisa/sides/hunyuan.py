"""``HunyuanDiT2DControlNetModel`` beside HunyuanDiT: a copy of the first half of its blocks, which reads latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer
from lisa.sides.blocks import ATTENTION, FEED_FORWARD
from lisa.sides.copying import common_configuration, copy_weights
from lisa.sides.layers import layer_names, zeros_like


class HunyuanControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`."""

    kind = "HunyuanDiT2DControlNetModel"
    reads = "latents"
    lora_targets = (*ATTENTION, *FEED_FORWARD)

    @classmethod
    def from_main(cls, network: nn.Module) -> HunyuanControlNetSide:
        """A copy of the blocks whose outputs are skip connections.

        diffusers' own ``from_transformer`` needs the number of layers told, and forgets the pooled text's width and
        whether sizes and style are embedded (they are not from version 1.2 on).

        Raises:
            LisaError: the main network lacks some of the weights.
        """
        from diffusers import HunyuanDiT2DControlNetModel as Kind

        depth = network.config.num_layers  # type: ignore[union-attr]
        module = Kind(**common_configuration(Kind, network, transformer_num_layers=depth))
        copy_weights(module, network.state_dict(), new=("controlnet_blocks", "input_block"))
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """A list of (B, N, D), one per skip connection."""
        module = self.module
        return self.callee(
            in_dtype_of(module, x_t),
            in_dtype_of(module, t.float()),  # its type becomes that of the embeddings
            controlnet_cond=in_dtype_of(module, condition),
            return_dict=False,
            **{
                name: in_dtype_of(module, value) if name.startswith("encoder_hidden_states") else value
                for name, value in context.items()
            },
        )[0]

    def layers(self) -> list[Layer]:
        """All blocks have the same width and see the tokens of the latent's patches."""
        config = self.module.config
        return [
            Layer(name, path, config.hidden_size, config.patch_size) for name, path in layer_names(self.module).items()
        ]

    def zero_modules(self) -> list[nn.Module]:
        """The projections at the way out, and the condition's at the way in."""
        return [*self.module.controlnet_blocks, self.module.input_block]


def run_on_zeros(network: Any) -> tuple[int, int]:
    """One forward of a ``HunyuanDiT2DControlNetModel``: the size of its latent."""
    config, zeros = network.config, zeros_like(network)
    side = 2 * config.patch_size
    network(
        zeros(1, config.in_channels, side, side),
        zeros(1),
        controlnet_cond=zeros(1, config.in_channels, side, side),
        encoder_hidden_states=zeros(1, config.text_len, config.cross_attention_dim),
        text_embedding_mask=zeros(1, config.text_len),
        encoder_hidden_states_t5=zeros(1, config.text_len_t5, config.cross_attention_dim_t5),
        text_embedding_mask_t5=zeros(1, config.text_len_t5),
        image_meta_size=zeros(1, 6),
        style=zeros(1).long(),
        return_dict=False,
    )
    return side, side
