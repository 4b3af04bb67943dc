"""Z-Image: ``ZImageTransformer2DModel``, a rectified flow that counts time and sign the other way, text from Qwen 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.padding import padded, unpadded
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow, check_shifted_vae, scheduler_of
from lisa.mains.codec import KLCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

#: Tokens of text that the pipelines keep; contexts are padded to it, so that they can be batched and cached.
TEXT_LENGTH = 512


class ZImageMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``ZImagePipeline``.
        source: where it came from.

    Raises:
        LisaError: its scheduler, its autoencoder or its kind of transformer is not supported.
    """

    family = "z-image"
    patch = 2

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        process = flow_process(pipeline.scheduler.config, model_time_scale=1.0)
        super().__init__(pipeline, source, process, KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``, whose list is padded: ``cap_feats`` (B, 512, D), ``cap_mask``."""
        device = self.encoder_device()
        with torch.no_grad():  # a list of its own: the pipeline writes into it
            texts, _ = self.pipeline.encode_prompt(list(captions), device, False, max_sequence_length=TEXT_LENGTH)
        features, mask = padded(texts, TEXT_LENGTH)
        return {"cap_feats": features, "cap_mask": mask}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: (B, tokens, D) by number of the layer after which it is added.

        The network is told how much of a picture is there already, 1 - t, and gives x_0 - noise.
        """
        network = self.network
        outputs = network(
            list(in_dtype_of(network, x_t).unsqueeze(2)),
            1 - self.process.model_time(t),
            unpadded(in_dtype_of(network, context["cap_feats"]), context["cap_mask"]),
            controlnet_block_samples=None
            if residuals is None
            else {layer: in_dtype_of(network, residual) for layer, residual in residuals.items()},
            return_dict=False,
        )[0]
        return -torch.stack(outputs).squeeze(2)

    def shared_modules(self) -> list[nn.Module]:
        """Embedders, both refiners and the first layer: the control enters after it."""
        network: Any = self.network
        embedders = [network.t_embedder, network.all_x_embedder["2-1"], network.cap_embedder]
        return [*embedders, *network.noise_refiner, *network.context_refiner, network.layers[0]]


def load_zimage(source: str, **options: Any) -> ZImageMain:
    """Load a Z-Image model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Z-Image model that can be trained on.
    """
    layout = Layout(
        pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline", "ZImageControlNetPipeline"),
        network="transformer",
        check_scheduler=check_flow,
        optional=("text_encoder", "tokenizer"),
    )
    return ZImageMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_flow(scheduler_of(pipeline), source)
    check_shifted_vae(pipeline, source)
    check_encoders(pipeline, source, ZImageMain.text_encoders)
    config = pipeline.transformer.config
    check_channels(source, config.in_channels, config.in_channels, pipeline.vae.config.latent_channels)
    if config.siglip_feat_dim is not None:
        raise LisaError(
            f"the transformer of {source!r} reads pictures too (siglip_feat_dim={config.siglip_feat_dim})",
            "Use the text-to-image model (Z-Image or Z-Image-Turbo)",
        )
