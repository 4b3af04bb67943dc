"""``ControlNetModel`` beside a UNet (Zhang et al., arXiv 2302.05543)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line, is_hub_name, read_json, weight_variant
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, Layer
from lisa.sides.layers import layer_names

# diffusers' own widths of the condition embedding; each after the first halves the picture.
_EMBEDDING_CHANNELS = (16, 32, 96, 256)
_REMEDY = "Give a ControlNet folder in diffusers' layout (config.json and safetensors), a run folder, or a Hub name"


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
            LisaError: the factor is not a power of two that diffusers' embedding can be built for, or the main network
                is of a kind that diffusers cannot copy.
        """
        from diffusers import ControlNetModel

        halvings = latent_factor.bit_length() - 1
        if latent_factor != 2**halvings or not 1 <= halvings < len(_EMBEDDING_CHANNELS):
            raise LisaError(f"no condition embedding for latents of factor {latent_factor}", choices=("2", "4", "8"))
        channels = _EMBEDDING_CHANNELS[: halvings + 1]
        try:
            module = ControlNetModel.from_unet(
                network, conditioning_embedding_out_channels=channels, conditioning_channels=conditioning_channels
            )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # e.g. a UNet with fourier embeddings
            raise LisaError(
                f"diffusers cannot copy this {type(network).__name__} into a ControlNet: {first_line(error)}",
                "Use a plain Stable Diffusion 1.x or 2.x UNet",
            ) from error
        return cls(module.float())

    @classmethod
    def from_folder(cls, folder: str) -> ControlNetSide:
        """An existing ControlNet: a folder in diffusers' layout, a run folder, or a Hub name.

        Raises:
            LisaError: it cannot be loaded, is of another class, or lacks weights (which would silently be random).
        """
        from diffusers import ControlNetModel

        source, variant = _find(folder)
        try:
            module, found = ControlNetModel.from_pretrained(source, variant=variant, output_loading_info=True)
        except Exception as error:  # many kinds; all mean: this cannot be loaded
            raise LisaError(f"the side network {folder!r} cannot be loaded: {first_line(error)}", _REMEDY) from error
        wrong = sorted(found["missing_keys"]) + sorted(found["unexpected_keys"])
        if wrong:
            raise LisaError(
                f"the weights of the side network {folder!r} do not match its configuration: {len(wrong)} are missing "
                f"or too many ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})",
                _REMEDY,
            )
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``: what ``UNet2DConditionModel`` takes as additional residuals."""
        module = self.module
        return self.callee(
            in_dtype_of(module, x_t),
            t,
            in_dtype_of(module, context["encoder_hidden_states"]),
            controlnet_cond=in_dtype_of(module, condition),
            return_dict=False,
        )

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


def _find(source: str) -> tuple[str, str | None]:
    """The folder (or Hub name) that holds the ControlNet, and the variant of its weights."""
    path = Path(source)
    if (path / "side_network").is_dir():
        path = path / "side_network"
    if not path.is_dir():
        if path.exists() or not is_hub_name(source):
            raise LisaError(f"there is no ControlNet folder {source!r}", _REMEDY)
        return source, None
    config = path / "config.json"
    if not config.is_file():
        raise LisaError(f"{str(path)!r} is not a ControlNet folder (it has no config.json)", _REMEDY)
    name = read_json(config).get("_class_name")
    if name != ControlNetSide.kind:
        raise LisaError(f"{str(path)!r} holds a {name}, not a {ControlNetSide.kind}", _REMEDY)
    return str(path), weight_variant(path, None)
