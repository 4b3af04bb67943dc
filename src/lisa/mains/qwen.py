"""Qwen-Image: ``QwenImageTransformer2DModel``, a rectified flow on packed latents, text from Qwen 2.5 VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lisa.common.errors import LisaError
from lisa.core.packing import pack, unpack
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow, check_vae, scheduler_of
from lisa.mains.codec import QwenImageCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

#: Tokens of text that the pipelines keep; contexts are padded to it, so that they can be batched and cached.
TEXT_LENGTH = 512
#: What stands for no text, here and in the pipelines' examples.
EMPTY = " "

_PLAIN = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


class QwenImageMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`. Latents are maps outside, packed tokens inside.

    Args:
        pipeline: a ``QwenImagePipeline``.
        source: where it came from.

    Raises:
        LisaError: its scheduler, its autoencoder or its kind of transformer is not supported.
    """

    family = "qwen-image"
    patch = 2

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        process = flow_process(pipeline.scheduler.config, model_time_scale=1.0)
        super().__init__(pipeline, source, process, QwenImageCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``, padded: ``encoder_hidden_states`` (B, 512, D) and their mask."""
        device = self.encoder_device()
        texts = [caption or EMPTY for caption in captions]
        with torch.no_grad():
            embeds, mask = self.pipeline.encode_prompt(texts, device=device, max_sequence_length=TEXT_LENGTH)
        if mask is None:  # no caption is shorter than another
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=device)
        missing = TEXT_LENGTH - embeds.shape[1]
        return {
            "encoder_hidden_states": pad(embeds, (0, 0, 0, missing)),
            "encoder_hidden_states_mask": pad(mask, (0, missing)),
        }

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Text as long as the longest of the batch, and a mask only where it masks something, as the pipeline does."""
        mask = context["encoder_hidden_states_mask"].bool()
        lengths = mask.sum(dim=1)
        shortest, longest = (int(value) for value in torch.stack([lengths.min(), lengths.max()]))
        trimmed = {**context, "encoder_hidden_states": context["encoder_hidden_states"][:, :longest]}
        del trimmed["encoder_hidden_states_mask"]
        return trimmed if shortest == longest else trimmed | {"encoder_hidden_states_mask": mask[:, :longest]}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: one (B, N, D) per block of the side network."""
        network, (height, width) = self.network, (x_t.shape[-2], x_t.shape[-1])
        tokens = network(
            hidden_states=in_dtype_of(network, pack(x_t)),
            encoder_hidden_states=in_dtype_of(network, context["encoder_hidden_states"]),
            encoder_hidden_states_mask=context.get("encoder_hidden_states_mask"),
            timestep=self.process.model_time(t),
            img_shapes=[(1, height // 2, width // 2)] * len(x_t),
            controlnet_block_samples=None if residuals is None else [in_dtype_of(network, r) for r in residuals],
            return_dict=False,
        )[0]
        return unpack(tokens, (height, width))

    def shared_modules(self) -> list[nn.Module]:
        """Embedders and the first block: the control enters after it."""
        network: Any = self.network
        embedders = [network.img_in, network.txt_norm, network.txt_in, network.time_text_embed]
        return [*embedders, network.transformer_blocks[0]]


def load_qwen_image(source: str, **options: Any) -> QwenImageMain:
    """Load a Qwen-Image model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Qwen-Image model that can be trained on.
    """
    layout = Layout(
        pipelines=(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
        ),
        network="transformer",
        check_scheduler=check_flow,
        optional=("text_encoder", "tokenizer"),
    )
    return QwenImageMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_flow(scheduler_of(pipeline), source)
    check_encoders(pipeline, source, QwenImageMain.text_encoders)
    config = pipeline.transformer.config
    for name in _PLAIN:
        if config.get(name):
            raise LisaError(
                f"the transformer of {source!r} has {name}={config[name]}, which its ControlNet pipeline cannot follow",
                "Use the text-to-image model (Qwen-Image); edit and layered models are not supported",
            )
    check_vae(pipeline, source, "AutoencoderKLQwenImage")
    latent = pipeline.vae.config.z_dim
    remedy = "Use the text-to-image model (Qwen-Image)"
    check_channels(source, config.in_channels // 4, config.out_channels, latent, remedy)
