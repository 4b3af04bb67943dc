"""Flux.1 dev and schnell: ``FluxTransformer2DModel``, a rectified flow on packed latents, with CLIP and T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.core.packing import pack, unpack
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow, check_shifted_vae, scheduler_of
from lisa.mains.codec import KLCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

# What dev is sampled at by custom, and what diffusers' own example trains ControlNets at.
GUIDANCE = 3.5


class FluxMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`. Latents are maps (B, 16, h, w) outside, tokens (B, N, 64) inside.

    Args:
        pipeline: a ``FluxPipeline``.
        source: where it came from.
        guidance: the embedded (distilled) guidance of training, the same in both passes; networks without a guidance
            embedding (schnell) are not given it.

    Raises:
        LisaError: its scheduler, VAE, text encoders or channels are not those of the family.
    """

    family = "flux"
    text_encoders = ("text_encoder", "text_encoder_2")
    components = (
        *("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        *("transformer", "scheduler"),
    )
    patch = 2

    def __init__(self, pipeline: Any, source: str, guidance: float = GUIDANCE) -> None:
        config = pipeline.transformer.config
        check_flow(scheduler_of(pipeline), source)
        check_shifted_vae(pipeline, source)
        check_encoders(pipeline, source, self.text_encoders)
        gives = config.out_channels or config.in_channels
        check_channels(source, config.in_channels // 4, gives // 4, pipeline.vae.config.latent_channels)
        self.guidance = guidance
        process = flow_process(pipeline.scheduler.config, model_time_scale=1.0)
        super().__init__(pipeline, source, process, KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``: T5's ``encoder_hidden_states`` (B, 512, D), CLIP's
        ``pooled_projections`` (B, P).
        """
        device = self.encoder_device()
        self.component("text_encoder_2")
        with torch.no_grad():
            embeds, pooled, _ = self.pipeline.encode_prompt(list(captions), None, device=device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Adds ``img_ids`` (N, 3) and ``txt_ids`` (L, 3), the positions of tokens, and ``guidance`` (B,)."""
        batch, _, height, width = x_t.shape
        grid = self.pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x_t.device, torch.float32)
        text = torch.zeros(context["encoder_hidden_states"].shape[1], 3, device=x_t.device)
        guidance = torch.full((batch,), self.guidance, device=x_t.device)
        return {**context, "img_ids": grid, "txt_ids": text, "guidance": guidance}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: ``(double, single)`` as ``FluxControlNetModel`` gives them, or None."""
        network = self.network
        double, single = residuals if residuals is not None else (None, None)
        tokens = network(
            hidden_states=in_dtype_of(network, pack(x_t)),
            timestep=self.process.model_time(t),
            guidance=context["guidance"] if network.config.guidance_embeds else None,
            encoder_hidden_states=in_dtype_of(network, context["encoder_hidden_states"]),
            pooled_projections=in_dtype_of(network, context["pooled_projections"]),
            txt_ids=context["txt_ids"],
            img_ids=context["img_ids"],
            controlnet_block_samples=None if double is None else [in_dtype_of(network, r) for r in double],
            controlnet_single_block_samples=None if single is None else [in_dtype_of(network, r) for r in single],
            return_dict=False,
        )[0]
        return unpack(tokens, (x_t.shape[-2], x_t.shape[-1]))

    def shared_modules(self) -> list[nn.Module]:
        """Embedders and the first double block: a ControlNet enters after it."""
        network = self.network
        embedders = [network.x_embedder, network.time_text_embed, network.context_embedder, network.pos_embed]
        return [*embedders, network.transformer_blocks[0]]


def load_flux(source: str, **options: Any) -> FluxMain:
    """Load a Flux.1 model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Flux.1 model that can be trained on.
    """
    layout = Layout(
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
        ),
        network="transformer",
        check_scheduler=check_flow,
        options={"image_encoder": None, "feature_extractor": None},
        optional=FluxMain.components[1:5],  # none may be missing; the class says so in clear words
    )
    return FluxMain.load(layout, source, **options)
