"""HunyuanDiT: ``HunyuanDiT2DModel``, text from BERT and T5 with masks, 4-channel latents, v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_encoders, check_prediction, scheduler_of
from lisa.mains.codec import KLCodec
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain
from lisa.processes.ddpm import DDPMProcess

# What the pipelines pass unless told otherwise, so that the side network is trained on what it will meet.
_ORIGINAL_SIZE = (1024, 1024)
_CROP = (0, 0)
# The pipelines count pixels and positions with it, whatever the autoencoder's own factor is.
_FACTOR = 8
# (name in the context, length that the pipelines pad to): of BERT and of T5, in the order of ``text_encoder_index``.
_TEXTS = (("", 77), ("_t5", 256))


class HunyuanMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``HunyuanDiTPipeline``.
        source: where it came from.

    Raises:
        LisaError: what it predicts, a missing text encoder or its autoencoder is not supported.
    """

    family = "hunyuan-dit"
    text_encoders = ("text_encoder", "text_encoder_2")
    components = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer", "scheduler")

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        self.patch = int(pipeline.transformer.config.patch_size)
        super().__init__(pipeline, source, DDPMProcess(dict(pipeline.scheduler.config)), KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``, for each encoder; named as the network's arguments.

        ``encoder_hidden_states`` (B, 77, D), ``encoder_hidden_states_t5`` (B, 256, D5), and ``text_embedding_mask``,
        ``text_embedding_mask_t5`` (B, 77 and 256).
        """
        context = {}
        for index, (suffix, length) in enumerate(_TEXTS):
            device = self.encoder_device(self.text_encoders[index])
            with torch.no_grad():
                embeds, _, mask, _ = self.pipeline.encode_prompt(
                    list(captions),
                    device,
                    do_classifier_free_guidance=False,
                    max_sequence_length=length,
                    text_encoder_index=index,
                )
            context |= {f"encoder_hidden_states{suffix}": embeds, f"text_embedding_mask{suffix}": mask}
        return context

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Sizes (original, target, crop) and style, (B, 6) and (B,), and the rotary positions, (2, N, D): cos, sin."""
        batch, _, height, width = x_t.shape
        sizes = [*_ORIGINAL_SIZE, height * _FACTOR, width * _FACTOR, *_CROP]
        return {
            **context,
            "image_meta_size": x_t.new_tensor(sizes).repeat(batch, 1),
            "style": torch.zeros(batch, dtype=torch.int64, device=x_t.device),
            "image_rotary_emb": self._positions(height, width, x_t.device),
        }

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: one (B, N, D) per skip connection, first block first. Half of the output is a variance."""
        network = self.network
        output: Tensor = network(
            in_dtype_of(network, x_t),
            in_dtype_of(network, self.process.model_time(t).float()),  # its type becomes that of the embeddings
            # a list of its own: the network pops them off
            controlnet_block_samples=None if residuals is None else [in_dtype_of(network, r) for r in residuals],
            return_dict=False,
            **{
                name: in_dtype_of(network, value) if name.startswith("encoder_hidden_states") else value
                for name, value in context.items()
            },
        )[0]
        return output.chunk(2, dim=1)[0]

    def shared_modules(self) -> list[nn.Module]:
        """Embeddings, the first half of the blocks and the middle one: the control enters with the first skip."""
        network: Any = self.network
        middle = network.config.num_layers // 2
        return [network.pos_embed, network.time_extra_emb, network.text_embedder, *network.blocks[: middle + 1]]

    def _positions(self, height: int, width: int, device: torch.device) -> Tensor:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        config = self.network.config
        grid = (height // self.patch, width // self.patch)
        region = get_resize_crop_region_for_grid(grid, 512 // _FACTOR // self.patch)  # 512: what the model grew up on
        cos_sin = get_2d_rotary_pos_embed(config.attention_head_dim, region, grid, device=device, output_type="pt")
        return torch.stack(cos_sin)


def load_hunyuan(source: str, **options: Any) -> HunyuanMain:
    """Load a HunyuanDiT model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a HunyuanDiT model that can be trained on.
    """
    layout = Layout(
        pipelines=("HunyuanDiTPipeline", "HunyuanDiTControlNetPipeline", "HunyuanDiTPAGPipeline"),
        network="transformer",
        check_scheduler=check_prediction,
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        optional=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    )
    return HunyuanMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_prediction(scheduler_of(pipeline), source)
    check_encoders(pipeline, source, HunyuanMain.text_encoders)
    config = pipeline.transformer.config
    if not config.learn_sigma:
        raise LisaError(
            f"the transformer of {source!r} has learn_sigma=False",
            "diffusers' HunyuanDiT pipelines drop half of the output as a variance; use a model with learn_sigma=True",
        )
    codec = KLCodec(pipeline.vae)
    if (codec.factor, codec.channels) != (_FACTOR, config.in_channels):
        raise LisaError(
            f"the autoencoder of {source!r} gives {codec.channels} channels at 1/{codec.factor} of the size",
            f"HunyuanDiT's pipelines count on {config.in_channels} channels at 1/{_FACTOR}",
        )
