"""``ControlNetUnionModel`` beside an SDXL UNet: one ControlNet for several kinds of condition (xinsir, 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import first_line
from lisa.core.precision import in_dtype_of
from lisa.sides.base import Context
from lisa.sides.controlnet import ControlNetSide, embedding_channels
from lisa.sides.copying import common_configuration, copy_weights

# What the main network has no weights for.
_NEW = (
    "controlnet_cond_embedding",
    "controlnet_down_blocks",
    "controlnet_mid_block",
    "control_add_embedding",
    "task_embedding",
    "transformer_layes",  # spelt so in diffusers
    "spatial_ch_projs",
)


class ControlNetUnionSide(ControlNetSide):
    """See :class:`lisa.sides.base.SideNetwork`.

    Attributes:
        control_type: the number of the kind of condition, of those that the network tells apart, which is trained.
    """

    kind = "ControlNetUnionModel"
    original_names = None  # its authors' files have diffusers' names
    control_type = 0

    def choose_control_type(self, number: int) -> None:
        """Train, and sample with, another kind of condition.

        Raises:
            LisaError: the network does not tell so many apart.
        """
        kinds = self.module.config.num_control_type
        if not 0 <= number < kinds:
            raise LisaError(
                f"side.control_type is {number}, this {self.kind} tells {kinds} kinds of conditions apart",
                f"Choose 0 to {kinds - 1}",
            )
        self.control_type = number

    @property
    def call_options(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The pipeline has to be told the kind, too."""
        return {"control_mode": self.control_type}

    @classmethod
    def from_main(cls, network: nn.Module, latent_factor: int) -> ControlNetUnionSide:
        """A copy of the main network's encoder; see :meth:`ControlNetSide.from_main`.

        Raises:
            LisaError: a latent factor without a condition embedding, or a main network that cannot be copied.
        """
        from diffusers import ControlNetUnionModel

        # Not by from_unet, which makes only networks whose first block is 320 wide, and leaves out add_embedding.
        width = network.config.block_out_channels[0]
        config = common_configuration(
            ControlNetUnionModel,
            network,
            conditioning_embedding_out_channels=embedding_channels(latent_factor),
            num_trans_channel=width,
            num_proj_channel=width,
        )
        try:
            module = ControlNetUnionModel(**config)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise LisaError(
                f"no ControlNetUnionModel can be made for this {type(network).__name__}: {first_line(error)}",
                "Use a plain Stable Diffusion XL UNet",
            ) from error
        copy_weights(module, network.state_dict(), _NEW)
        return cls(module.float())

    def forward(self, x_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Any:
        """``(down, mid)``, as a ControlNet of the one kind of condition gives them."""
        kinds = x_t.new_zeros(x_t.shape[0], self.module.config.num_control_type)
        kinds[:, self.control_type] = 1
        with _samples_apart(self.module, x_t.shape[0]):
            return self._run(
                x_t,
                t,
                context,
                controlnet_cond=[in_dtype_of(self.module, condition)],
                control_type=in_dtype_of(self.module, kinds),
                control_type_idx=[self.control_type],
            )

    def zero_modules(self) -> list[nn.Module]:
        """Also the projection by which the transformer over conditions enters."""
        return [*super().zero_modules(), self.module.spatial_ch_projs]

    def new_parameters(self) -> list[nn.Parameter]:
        """Also those of the transformer over conditions and the embeddings of their kinds."""
        return [parameter for name, parameter in self.module.named_parameters() if name.split(".")[0] in _NEW]


@contextmanager
def _samples_apart(module: Any, batch: int) -> Iterator[None]:
    """Keep samples from seeing each other's conditions while the block runs.

    The transformer over conditions hands (samples, tokens, channels) to an attention that takes (tokens, samples,
    channels), so each token attends to the same token of the other samples. A pipeline that makes one picture has
    copies of one sample there, for which that is no attention at all; in training they would be different pictures.
    """

    def apart(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].reshape(1, -1, inputs[0].shape[-1]),)

    def together(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.reshape(batch, -1, output.shape[-1])

    with ExitStack() as stack:
        for layer in module.transformer_layes:
            stack.callback(layer.register_forward_pre_hook(apart).remove)
            stack.callback(layer.register_forward_hook(together).remove)
        yield
