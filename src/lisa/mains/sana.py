"""Sana: ``SanaTransformer2DModel``, a rectified flow with linear attention, text from Gemma, latents at 1/32."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow_solver, check_vae, scheduler_of
from lisa.mains.codec import DCCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

# Settings of the transformer that the ControlNet or its pipeline cannot follow, and what they must be.
_PLAIN = {
    "guidance_embeds": (False, "is distilled to few steps (Sana Sprint)"),
    "timestep_scale": (1.0, "counts time otherwise (Sana Sprint)"),
    "qk_norm": (None, "normalises queries and keys (Sana 1.5), which diffusers' SanaControlNetModel cannot"),
}


class SanaMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``SanaPipeline``.
        source: where it came from.

    Raises:
        LisaError: its scheduler, its autoencoder or its kind of transformer is not supported.
    """

    family = "sana"

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        self.patch = int(pipeline.transformer.config.patch_size)
        process = flow_process(pipeline.scheduler.config, model_time_scale=1000.0)
        super().__init__(pipeline, source, process, DCCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``: ``encoder_hidden_states`` (B, 300, D), ``encoder_attention_mask``.

        As in the pipeline's call, Gemma reads an instruction before the caption, and none before the empty caption of
        classifier-free guidance.
        """
        device = self.encoder_device()
        captions = list(captions)
        with torch.no_grad():
            text, mask, _, _ = self.pipeline.encode_prompt(
                captions, False, device=device, complex_human_instruction=_instruction()
            )
            if "" in captions:
                empty = torch.tensor([caption == "" for caption in captions], device=device)
                without, without_mask, _, _ = self.pipeline.encode_prompt("", False, device=device)
                text = torch.where(empty[:, None, None], without, text)
                mask = torch.where(empty[:, None], without_mask, mask)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: one (B, N, D) for each block from the second on, as many as there are."""
        network = self.network
        prediction: Tensor = network(
            in_dtype_of(network, x_t),
            in_dtype_of(network, context["encoder_hidden_states"]),
            timestep=self.process.model_time(t),
            encoder_attention_mask=context["encoder_attention_mask"],
            controlnet_block_samples=None if residuals is None else tuple(in_dtype_of(network, r) for r in residuals),
            return_dict=False,
        )[0]
        return prediction

    def shared_modules(self) -> list[nn.Module]:
        """Embeddings and the first two blocks: the control enters after the second."""
        network: Any = self.network
        embeddings = [network.patch_embed, network.time_embed, network.caption_projection, network.caption_norm]
        return [*embeddings, *network.transformer_blocks[:2]]


def load_sana(source: str, **options: Any) -> SanaMain:
    """Load a Sana model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Sana model that can be trained on.
    """
    layout = Layout(
        pipelines=("SanaPipeline", "SanaPAGPipeline", "SanaControlNetPipeline"),
        network="transformer",
        check_scheduler=check_flow_solver,
        optional=("text_encoder", "tokenizer"),
    )
    return SanaMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_flow_solver(scheduler_of(pipeline), source)
    check_encoders(pipeline, source, SanaMain.text_encoders)
    config = pipeline.transformer.config
    for name, (plain, why) in _PLAIN.items():
        if config.get(name, plain) != plain:
            raise LisaError(
                f"the transformer of {source!r} {why}: {name}={config[name]!r}",
                "Use a Sana 1.0 model (0.6B or 1.6B)",
            )
    check_vae(pipeline, source, "AutoencoderDC")
    latent = pipeline.vae.config.latent_channels
    check_channels(source, config.in_channels, config.out_channels, latent, "Use a plain text-to-image model")


def _instruction() -> list[str]:
    """What stands before every caption unless the pipeline is told otherwise."""
    from diffusers import SanaControlNetPipeline

    call = inspect.signature(SanaControlNetPipeline.__call__)
    return list(call.parameters["complex_human_instruction"].default)
