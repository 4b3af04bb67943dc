"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel``, a rectified flow, with two CLIP encoders and perhaps T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow, check_shifted_vae, scheduler_of
from lisa.mains.codec import KLCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

# What its pipelines pad captions to for T5, unless told otherwise; a tokenizer may be for shorter ones.
_T5_LENGTH = 256


class StableDiffusion3Main(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``StableDiffusion3Pipeline``, whose third text encoder (T5) may be None.
        source: where it came from.

    Raises:
        LisaError: its scheduler, VAE, text encoders or channels are not those of the family.
    """

    family = "stable-diffusion-3"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    components = (
        *("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        *("transformer", "scheduler"),
    )

    def __init__(self, pipeline: Any, source: str) -> None:
        config = pipeline.transformer.config
        check_flow(scheduler_of(pipeline), source)
        _check_shifting(pipeline.scheduler.config, source)
        check_shifted_vae(pipeline, source)
        check_encoders(pipeline, source, self.text_encoders, optional=("text_encoder_3",))
        check_channels(source, config.in_channels, config.out_channels, pipeline.vae.config.latent_channels)
        self.patch = config.patch_size
        self.latent_limit = config.pos_embed_max_size * config.patch_size
        if pipeline.text_encoder_3 is not None:
            length = min(_T5_LENGTH, pipeline.tokenizer_3.model_max_length)
            self.call_options = {"max_sequence_length": length}
        process = flow_process(pipeline.scheduler.config, model_time_scale=1000.0)
        super().__init__(pipeline, source, process, KLCodec(pipeline.vae))

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``: ``encoder_hidden_states`` (B, L, D), ``pooled_projections`` (B, P).

        Of T5 as many tokens as ``call_options`` say, in training as in pictures. Without T5 the pipeline puts zeros in
        its place.
        """
        for name in self.text_encoders:
            self.component(name, optional=name == "text_encoder_3")
        with torch.no_grad():
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                list(captions),
                None,
                None,
                device=self.encoder_device(),
                do_classifier_free_guidance=False,
                **self.call_options,
            )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Adds what only the main network knows and some side networks need.

        ``tokens`` (B, N, D): x_t, embedded with its positions; ``vae_shift`` (B, 1, 1, 1): what the VAE's shift took
        off every latent.

        Raises:
            LisaError: the latent is larger than the network has positions for.
        """
        assert self.latent_limit is not None
        if max(x_t.shape[-2:]) > self.latent_limit:
            raise LisaError(
                f"a latent of {tuple(x_t.shape[-2:])} is larger than {self.source!r} has positions for",
                f"Choose a data.size of at most {self.latent_limit * self.latent_factor} pixels per side",
            )
        with torch.no_grad():
            tokens = self.network.pos_embed(in_dtype_of(self.network, x_t))
        shift = x_t.new_full((len(x_t), 1, 1, 1), self.codec.shift * self.codec.scaling)
        return {**context, "tokens": tokens, "vae_shift": shift}

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: one tensor (B, N, D) per block of the side network, or None."""
        network = self.network
        prediction: Tensor = network(
            hidden_states=in_dtype_of(network, x_t),
            timestep=self.process.model_time(t),
            encoder_hidden_states=in_dtype_of(network, context["encoder_hidden_states"]),
            pooled_projections=in_dtype_of(network, context["pooled_projections"]),
            block_controlnet_hidden_states=None if residuals is None else [in_dtype_of(network, r) for r in residuals],
            return_dict=False,
        )[0]
        return prediction

    def shared_modules(self) -> list[nn.Module]:
        """Embedders and the first block: a ControlNet enters after it."""
        network = self.network
        return [network.pos_embed, network.time_text_embed, network.context_embedder, network.transformer_blocks[0]]


def load_sd3(source: str, **options: Any) -> StableDiffusion3Main:
    """Load a Stable Diffusion 3 or 3.5 model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Stable Diffusion 3 model that can be trained on.
    """
    layout = Layout(
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
            "StableDiffusion3PAGPipeline",
        ),
        network="transformer",
        check_scheduler=_check_scheduler,
        options={"image_encoder": None, "feature_extractor": None},
        optional=StableDiffusion3Main.components[1:7],  # which of them may be missing, the class says in clear words
    )
    return StableDiffusion3Main.load(layout, source, **options)


def _check_scheduler(scheduler: Mapping[str, Any], source: str) -> None:
    check_flow(scheduler, source)
    _check_shifting(scheduler, source)


def _check_shifting(scheduler: Mapping[str, Any], source: str) -> None:
    """The plain pipeline can shift by the size of the picture, the ControlNet pipeline would fail at its first step."""
    if scheduler.get("use_dynamic_shifting"):
        raise LisaError(
            f"the scheduler of {source!r} shifts by the size of the picture (use_dynamic_shifting), which "
            "StableDiffusion3ControlNetPipeline cannot do",
            "Set use_dynamic_shifting to false, and shift, in scheduler/scheduler_config.json",
        )
