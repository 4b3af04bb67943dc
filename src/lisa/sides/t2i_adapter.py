"""``T2IAdapter`` beside a UNet (Mou et al., arXiv 2302.08453): maps of the condition, added inside the down blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context, DiffusersSide, Layer
from lisa.sides.layers import layer_names
from lisa.sides.original import original_adapter_names

# Where the first down block has no attention its map is added after its downsampling, and the last map after the
# middle block: diffusers' full_adapter_xl is made for this UNet and no other.
_XL_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")


class T2IAdapterSide(DiffusersSide):
    """See :class:`lisa.sides.base.SideNetwork`. It sees neither x_t nor time nor text, and has no zero modules."""

    kind = "T2IAdapter"
    original_names = staticmethod(original_adapter_names)
    tap = "output"
    sees_x_t = False

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int, condition_channels: int = 3) -> T2IAdapterSide:
        """An adapter of random weights whose maps have the sizes of the main network's down blocks.

        Raises:
            LisaError: the main network has down blocks for which diffusers has no adapter.
        """
        from diffusers import T2IAdapter

        options = adapter_options(network, latent_factor)
        return cls(T2IAdapter(in_channels=condition_channels, **options).float())

    @property
    def condition_channels(self) -> int:
        """As it was made for."""
        return int(self.module.config.in_channels)

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """The maps as a list, one per place where they enter: ``UNet2DConditionModel``'s intra-block residuals."""
        return self.callee(in_dtype_of(self.module, condition))

    def layers(self) -> list[Layer]:
        """Strides from the halvings; an XL adapter's first map is at stride 2 already."""
        config: Any = self.module.config
        widths = list(config.channels)
        stride = 2 if config.adapter_type == "full_adapter_xl" else 1
        found = []
        for i, (name, path) in enumerate(layer_names(self.module).items()):
            if self.module.get_submodule(path).downsample is not None:
                stride *= 2
            # A light adapter has one block more than widths, as wide as the last.
            found.append(Layer(name, path, widths[min(i, len(widths) - 1)], stride))
        return found

    def zero_modules(self) -> list[nn.Module]:
        """None: an adapter starts from random weights, and acts from the first step on."""
        return []


def adapter_options(network: Any, latent_factor: int) -> dict[str, Any]:
    """``channels``, ``downscale_factor`` (of pixels, before the first map) and ``adapter_type`` that suit a UNet.

    Raises:
        LisaError: the UNet's down blocks are of an order that no adapter of diffusers suits.
    """
    widths, blocks = list(network.config.block_out_channels), tuple(network.config.down_block_types)
    if blocks == _XL_BLOCKS:
        return {
            "channels": [*widths, widths[-1]],
            "downscale_factor": 2 * latent_factor,
            "adapter_type": "full_adapter_xl",
        }
    if all(block.startswith("CrossAttn") for block in blocks[:-1]):
        return {"channels": widths, "downscale_factor": latent_factor, "adapter_type": "full_adapter"}
    raise LisaError(
        f"diffusers has no T2I-Adapter for a UNet of down blocks {', '.join(blocks)}",
        "Use a UNet with the down blocks of Stable Diffusion 1.x, 2.x or XL",
    )
