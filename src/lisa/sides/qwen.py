"""``QwenImageControlNetModel`` beside Qwen-Image: a copy of its first blocks, which reads latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.core.packing import pack
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer, SideOptions
from lisa.sides.blocks import JOINT_ATTENTION, choose_depth, freeze_unused
from lisa.sides.copying import common_configuration, copy_weights
from lisa.sides.flux import entered  # Qwen-Image takes control up in equal runs too
from lisa.sides.layers import layer_names, zeros_like

_DEPTH = 5  # diffusers' own custom
_PATCH = 2  # cells of the latent per token side


class QwenImageControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`. Latents come as maps and are packed here."""

    kind = "QwenImageControlNetModel"
    reads = "latents"
    lora_targets = (
        *JOINT_ATTENTION,
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        freeze_text_end(module.transformer_blocks[-1])

    @classmethod
    def from_main(cls, network: Any, options: SideOptions) -> QwenImageControlNetSide:
        """A copy of the main network's first blocks (five, unless ``options`` say otherwise).

        diffusers' own ``from_transformer`` leaves the norm of the text (``txt_norm``) as it is built.

        Raises:
            LisaError: blocks of that depth would reach nothing.
        """
        from diffusers import QwenImageControlNetModel as Kind

        depth = choose_depth(options, network.config.num_layers, entered, custom=_DEPTH)
        module = Kind(**common_configuration(Kind, network, num_layers=depth))
        copy_weights(module, network.state_dict(), new=("controlnet_blocks", "controlnet_x_embedder"))
        return cls(module.float())

    def settle(self, network: Any) -> None:
        """Freeze what cannot reach this main network."""
        module = self.module
        used = entered(len(module.transformer_blocks), network.config.num_layers)
        freeze_unused(module.transformer_blocks, module.controlnet_blocks, used)
        freeze_text_end(module.transformer_blocks[max(used)])

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """A list of (B, N, D), one per block (without ``return_dict`` this network gives the bare list)."""
        module, (height, width) = self.module, (x_t.shape[-2], x_t.shape[-1])
        return self.callee(
            hidden_states=in_dtype_of(module, pack(x_t)),
            controlnet_cond=in_dtype_of(module, pack(condition)),
            encoder_hidden_states=in_dtype_of(module, context["encoder_hidden_states"]),
            encoder_hidden_states_mask=context.get("encoder_hidden_states_mask"),
            timestep=t,
            img_shapes=[(1, height // _PATCH, width // _PATCH)] * len(x_t),
            return_dict=False,
        )

    def layers(self) -> list[Layer]:
        """All blocks have the same width and see the packed tokens."""
        config = self.module.config
        width = config.num_attention_heads * config.attention_head_dim
        return [Layer(name, path, width, _PATCH) for name, path in layer_names(self.module).items()]

    def zero_modules(self) -> list[nn.Module]:
        """The projections at the way out, and the embedding of the condition."""
        return [*self.module.controlnet_blocks, self.module.controlnet_x_embedder]


def freeze_text_end(block: Any) -> None:
    """Freeze what makes the text tokens that leave the last block: nobody reads them.

    Text queries are among it: their gradient is not missing but zero.
    """
    for module in (block.txt_mlp, block.attn.to_add_out, block.attn.add_q_proj, block.attn.norm_added_q):
        module.requires_grad_(False)


def run_on_zeros(network: Any) -> tuple[int, int]:
    """One forward of a ``QwenImageControlNetModel``: the size of its latent."""
    config, zeros = network.config, zeros_like(network)
    network(
        hidden_states=zeros(1, 4, config.in_channels),
        controlnet_cond=zeros(1, 4, config.in_channels + config.extra_condition_channels),
        encoder_hidden_states=zeros(1, 8, config.joint_attention_dim),
        timestep=zeros(1),
        img_shapes=[(1, 2, 2)],
        return_dict=False,
    )
    return 2 * _PATCH, 2 * _PATCH
