"""``SanaControlNetModel`` beside Sana: a copy of its first blocks, which reads latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer
from lisa.sides.blocks import ATTENTION
from lisa.sides.copying import common_configuration, copy_weights
from lisa.sides.layers import layer_names, zeros_like

_DEPTH = 7  # diffusers' own custom


class SanaControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`."""

    kind = "SanaControlNetModel"
    reads = "latents"
    lora_targets = (*ATTENTION, "ff.conv_inverted", "ff.conv_point")

    @classmethod
    def from_main(cls, network: Any, depth: int | None = None) -> SanaControlNetSide:
        """A copy of the main network's first blocks (seven, unless ``depth`` says otherwise).

        Raises:
            LisaError: the main network has not one block more than ``depth``: it takes up control from its second
                block on.
        """
        from diffusers import SanaControlNetModel as Kind

        most = network.config.num_layers - 1
        if not 1 <= (depth or 1) <= most:
            raise LisaError(
                f"side.depth is {depth}, but the main network takes up the control of {most} blocks",
                f"Choose a depth from 1 to {most}",
            )
        module = Kind(**common_configuration(Kind, network, num_layers=depth or min(_DEPTH, most)))
        copy_weights(module, network.state_dict(), new=("controlnet_blocks", "input_block"))
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """A list of (B, N, D), one per block."""
        module = self.module
        return self.callee(
            in_dtype_of(module, x_t),
            in_dtype_of(module, context["encoder_hidden_states"]),
            timestep=t,
            encoder_attention_mask=context["encoder_attention_mask"],
            controlnet_cond=in_dtype_of(module, condition),
            return_dict=False,
        )[0]

    def layers(self) -> list[Layer]:
        """All blocks have the same width and see the tokens of the latent's patches."""
        config = self.module.config
        width = config.num_attention_heads * config.attention_head_dim
        return [Layer(name, path, width, config.patch_size) for name, path in layer_names(self.module).items()]

    def zero_modules(self) -> list[nn.Module]:
        """The projections at the way out, and the condition's at the way in."""
        return [*self.module.controlnet_blocks, self.module.input_block]


def run_on_zeros(network: Any) -> tuple[int, int]:
    """One forward of a ``SanaControlNetModel``: the size of its latent."""
    config, zeros = network.config, zeros_like(network)
    side = 2 * config.patch_size
    latent = zeros(1, config.in_channels, side, side)
    text = zeros(1, 8, config.caption_channels)
    network(latent, text, timestep=zeros(1), controlnet_cond=latent, return_dict=False)
    return side, side
