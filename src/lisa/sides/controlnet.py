"""``ControlNetModel`` beside a UNet (Zhang et al., arXiv 2302.05543)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer
from lisa.sides.blocks import ATTENTION, FEED_FORWARD
from lisa.sides.layers import layer_names
from lisa.sides.original import original_controlnet_names

# diffusers' own widths of the condition embedding; each after the first halves the picture.
_EMBEDDING_CHANNELS = (16, 32, 96, 256)
# What SDXL's networks are given beside the text: pooled text and picture sizes.
_ADDED = ("text_embeds", "time_ids")
# Attention, feed-forward and residual blocks: most of a UNet's encoder that is not embeddings.
_LORA_TARGETS = (
    *(*ATTENTION, *FEED_FORWARD, "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut"),
)


class ControlNetSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`."""

    kind = "ControlNetModel"
    lora_targets = _LORA_TARGETS
    original_names = staticmethod(original_controlnet_names)

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int, conditioning_channels: int = 3) -> ControlNetSide:
        """A copy of the main network's encoder, with a condition embedding that shrinks by ``latent_factor``.

        Raises:
            LisaError: the factor is not a power of two that diffusers' embedding can be built for, or the main network
                is of a kind that diffusers cannot copy.
        """
        from diffusers import ControlNetModel

        channels = embedding_channels(latent_factor)
        try:
            module = ControlNetModel.from_unet(
                network, conditioning_embedding_out_channels=channels, conditioning_channels=conditioning_channels
            )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # e.g. a UNet with fourier embeddings
            raise LisaError(
                f"diffusers cannot copy this {type(network).__name__} into a ControlNet: {first_line(error)}",
                "Use a plain Stable Diffusion 1.x, 2.x or XL UNet",
            ) from error
        return cls(module.float())

    @property
    def condition_channels(self) -> int:
        """As it was made for."""
        return int(self.module.config.conditioning_channels)

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``: what ``UNet2DConditionModel`` takes as additional residuals."""
        return self._run(x_t, t, context, controlnet_cond=in_dtype_of(self.module, condition))

    def _run(self, x_t: Tensor, t: Tensor, context: Context, **control: Any) -> Any:
        module = self.module
        added = {name: context[name] for name in _ADDED if name in context}  # the network casts them, after the sines
        return self.callee(
            in_dtype_of(module, x_t),
            t,
            in_dtype_of(module, context["encoder_hidden_states"]),
            added_cond_kwargs=added or None,
            return_dict=False,
            **control,
        )

    def layers(self) -> list[Layer]:
        """Sizes follow from the configuration: each block but the last ends with a halving."""
        config = self.module.config
        strides, stride, depths = [1], 1, config.layers_per_block
        levels = len(config.block_out_channels)
        for i, depth in enumerate([depths] * levels if isinstance(depths, int) else depths):
            strides += [stride] * depth
            if i < levels - 1:
                stride *= 2
                strides.append(stride)
        strides.append(stride)
        paths = layer_names(self.module)
        found = []
        for (name, path), size in zip(paths.items(), strides, strict=True):
            found.append(Layer(name, path, self.module.get_submodule(path).in_channels, size))
        return found

    def zero_modules(self) -> list[nn.Module]:
        """The 1x1 convolutions at the way out (and the last of the condition embedding, which starts at zero too)."""
        module = self.module
        return [*module.controlnet_down_blocks, module.controlnet_mid_block, module.controlnet_cond_embedding.conv_out]

    def new_parameters(self) -> list[nn.Parameter]:
        """Those of the convolutions at the way out, and of the whole condition embedding."""
        return [parameter for name, parameter in self.module.named_parameters() if name.startswith("controlnet_")]


def embedding_channels(latent_factor: int) -> tuple[int, ...]:
    """Widths of a condition embedding that shrinks pictures by ``latent_factor``.

    Raises:
        LisaError: it is not a power of two that diffusers' embedding can be built for.
    """
    halvings = latent_factor.bit_length() - 1
    if latent_factor != 2**halvings or not 1 <= halvings < len(_EMBEDDING_CHANNELS):
        raise LisaError(f"no condition embedding for latents of factor {latent_factor}", choices=("2", "4", "8"))
    return _EMBEDDING_CHANNELS[: halvings + 1]
