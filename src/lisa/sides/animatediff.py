"""``ControlNetModel`` beside AnimateDiff: Stable Diffusion's own, on each frame by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.frames import fold
from lisa.sides.base import Context
from lisa.sides.controlnet import ControlNetSide, embedding_channels
from lisa.sides.copying import common_configuration, copy_weights

_NEW = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")


class FrameControlNetSide(ControlNetSide):
    """See :class:`lisa.sides.base.SideNetwork`. It has no motion modules: what it gives is of single frames."""

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int, conditioning_channels: int = 3) -> FrameControlNetSide:
        """A copy of the UNet's encoder without its motion modules.

        diffusers' ``from_unet`` reads configuration that a ``UNetMotionModel`` has not.

        Raises:
            LisaError: see :func:`~lisa.sides.controlnet.embedding_channels`; or blocks of different depths.
        """
        from diffusers import ControlNetModel

        config: Any = network.config
        depths = config.layers_per_block
        depths = {depths} if isinstance(depths, int) else set(depths)
        if len(depths) > 1:
            raise LisaError(
                f"the UNet has blocks of {sorted(depths)} layers, a ControlNet has one number for all",
                "Use motion modules for Stable Diffusion 1.x or 2.x",
            )
        own = {
            "down_block_types": tuple(name.replace("Motion", "2D") for name in config.down_block_types),
            "layers_per_block": depths.pop(),
            "attention_head_dim": config.num_attention_heads,  # diffusers' old name for the same
            "num_attention_heads": None,
            "conditioning_channels": conditioning_channels,
            "conditioning_embedding_out_channels": embedding_channels(latent_factor),
        }
        module = ControlNetModel(**common_configuration(ControlNetModel, network, **own))
        copy_weights(module, network.state_dict(), _NEW)
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``: what ``UNetMotionModel`` takes as additional residuals, (B f, C, h, w) each.

        ``context`` is that of the frames (the main network's ``complete``).
        """
        return super().forward(fold(x_t), t.repeat_interleave(x_t.shape[2]), context, fold(condition))
