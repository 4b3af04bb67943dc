"""``ControlNetModel`` beside a UNet (Zhang et al., arXiv 2302.05543)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.mains.base import Context
from lisa.sides.base import Layer
from lisa.sides.layers import layer_names

# diffusers' own widths of the condition embedding; each after the first halves the picture.
_EMBEDDING_CHANNELS = (16, 32, 96, 256)


class ControlNetSide:
    """See :class:`lisa.sides.base.SideNetwork`."""

    kind = "ControlNetModel"

    def __init__(self, module: Any) -> None:
        self.module: nn.Module = module
        self.callee: Any = module  # what forward() calls: the trainer puts the distributed wrapper here

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int, conditioning_channels: int = 3) -> ControlNetSide:
        """A copy of the main network's encoder, with a condition embedding that shrinks by ``latent_factor``.

        Raises:
            LisaError: the factor is not a power of two that diffusers' embedding can be built for.
        """
        from diffusers import ControlNetModel

        halvings = latent_factor.bit_length() - 1
        if latent_factor != 2**halvings or not 1 <= halvings < len(_EMBEDDING_CHANNELS):
            raise LisaError(f"no condition embedding for latents of factor {latent_factor}", choices=("2", "4", "8"))
        channels = _EMBEDDING_CHANNELS[: halvings + 1]
        module = ControlNetModel.from_unet(
            network, conditioning_embedding_out_channels=channels, conditioning_channels=conditioning_channels
        )
        return cls(module.float())

    @classmethod
    def from_folder(cls, folder: str) -> ControlNetSide:
        """An existing ControlNet (a folder in diffusers' layout, a folder that contains ``side_network/``, or a Hub name).

        Raises:
            LisaError: it cannot be loaded.
        """
        from diffusers import ControlNetModel

        path = Path(folder)
        inner = path / "side_network"
        try:
            module = ControlNetModel.from_pretrained(inner if inner.is_dir() else folder, torch_dtype=torch.float32)
        except Exception as error:  # many kinds; all mean: this cannot be loaded
            first = (str(error).strip().splitlines() or [""])[0]
            raise LisaError(
                f"the side network {folder!r} cannot be loaded: {type(error).__name__}: {first}",
                "Give a ControlNet folder in diffusers' layout (config.json and safetensors), a run folder, or a Hub name",
            ) from error
        return cls(module)

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``: what ``UNet2DConditionModel`` takes as additional residuals."""
        return self.callee(x_t, t, context["encoder_hidden_states"], controlnet_cond=condition, return_dict=False)

    def layers(self) -> list[Layer]:
        """Sizes follow from the configuration: each block but the last ends with a halving."""
        config = self.module.config
        strides, stride = [1], 1
        for i, _ in enumerate(config.block_out_channels):
            strides += [stride] * config.layers_per_block
            if i < len(config.block_out_channels) - 1:
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

    def save(self, folder: Path) -> None:
        """Write a diffusers ControlNet folder."""
        self.module.save_pretrained(folder)
