"""Wan 2.1: ``WanTransformer3DModel``, a rectified flow of clips, text from UMT5, latents of a causal autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.mains.checks import check_channels, check_encoders, check_flow_solver, check_vae, scheduler_of
from lisa.mains.codec import WanCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain

#: Tokens of text that the pipelines keep in their calls.
TEXT_LENGTH = 512
_OTHERS = "Use a text-to-video model of Wan 2.1 (1.3B or 14B)"


class WanMain(PipelineMain):
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``WanPipeline``.
        source: where it came from.

    Raises:
        LisaError: its scheduler, its autoencoder or its kind of transformer is not supported.
    """

    family = "wan"
    video = True

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        self.patch = int(pipeline.transformer.config.patch_size[1])
        codec = WanCodec(pipeline.vae)
        self._nothing: tuple[Any, Tensor] | None = None
        self.every = codec.every
        super().__init__(pipeline, source, flow_process(pipeline.scheduler.config, model_time_scale=1000.0), codec)
        self.condition_latent_channels = 2 * codec.channels

    def latent_frames(self, frames: int) -> int:
        """One for the first, and one for each four that follow.

        Raises:
            LisaError: another number of frames; the message names the nearest that do.
        """
        if frames < 1 or (frames - 1) % self.every:
            below = max(frames - 1, 0) // self.every * self.every + 1
            raise LisaError(
                f"clips of {frames} frames: Wan's autoencoder takes 1 and then {self.every} at a time",
                f"Use {below} or {below + self.every} frames",
            )
        return 1 + (frames - 1) // self.every

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``: ``{"encoder_hidden_states": (B, 512, D)}``, zeros behind the text."""
        with torch.no_grad():
            text, _ = self.pipeline.encode_prompt(
                list(captions),
                do_classifier_free_guidance=False,
                max_sequence_length=TEXT_LENGTH,
                device=self.encoder_device(),
            )
        return {"encoder_hidden_states": text}

    def encode_condition(self, pixels: Tensor) -> Tensor:
        """As VACE reads a clip of which all is to be made: the latent of nothing (grey), then the condition's.

        (B, 3, F, H, W) in 0..1 to (B, 2 C, f, h, w).
        """
        given = super().encode_condition(pixels)
        return torch.cat([self._encode_nothing(pixels).expand_as(given), given], dim=1)

    def _encode_nothing(self, pixels: Tensor) -> Tensor:
        """The latent of one grey clip of that shape; the last is kept, as all of a training are of one."""
        vae = self.component("vae")
        about = (pixels.shape[1:], vae.device, vae.dtype)
        if self._nothing is None or self._nothing[0] != about:
            latent, _ = self.encode_moments(torch.zeros_like(pixels[:1])).chunk(2, dim=1)
            self._nothing = (about, latent)
        return self._nothing[1]

    def drop_encoders(self) -> None:
        """Free the text encoder, the VAE and what is kept of it."""
        super().drop_encoders()
        self._nothing = None

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: (B, tokens, D) by number of the block after which it is added."""
        network = self.network
        own = {} if residuals is None else {place: in_dtype_of(network, each) for place, each in residuals.items()}
        with _added(network, own):
            prediction: Tensor = network(
                in_dtype_of(network, x_t),
                self.process.model_time(t),
                in_dtype_of(network, context["encoder_hidden_states"]),
                return_dict=False,
            )[0]
        return prediction

    def shared_modules(self) -> list[nn.Module]:
        """Embedders and the first block: the control enters after it."""
        network: Any = self.network
        return [network.patch_embedding, network.condition_embedder, network.blocks[0]]


class _Controlled(nn.Module):
    """A block of the transformer, and what is added to what it gives."""

    def __init__(self, block: nn.Module, residual: Tensor) -> None:
        super().__init__()
        self.block, self.residual = block, residual

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.block(*args, **kwargs)
        return output + self.residual.to(output.dtype)


@contextmanager
def _added(network: Any, residuals: Mapping[int, Tensor]) -> Iterator[None]:
    """The network with other blocks in its list while this runs; the blocks themselves stay as they are.

    Not by hooks: a compiled block ignores those that come after its compilation, and a checkpointed one is run again in
    backward, when hooks are gone.
    """
    blocks = network.blocks
    network.blocks = nn.ModuleList(
        _Controlled(block, residuals[number]) if number in residuals else block for number, block in enumerate(blocks)
    )
    try:
        yield
    finally:
        network.blocks = blocks


def load_wan(source: str, **options: Any) -> WanMain:
    """Load a Wan model; ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not a Wan model that can be trained on.
    """
    layout = Layout(
        pipelines=("WanPipeline",),
        network="transformer",
        check_scheduler=check_flow_solver,
        options={"transformer_2": None},
        required=("text_encoder", "tokenizer"),
    )
    return WanMain.load(layout, source, **options)


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_flow_solver(scheduler_of(pipeline), source)
    check_vae(pipeline, source, "AutoencoderKLWan")
    check_encoders(pipeline, source, WanMain.text_encoders)
    config = pipeline.transformer.config
    if pipeline.config.get("boundary_ratio") is not None:
        raise LisaError(f"{source!r} has two transformers, for high and for low noise (Wan 2.2)", _OTHERS)
    if pipeline.config.get("expand_timesteps") or pipeline.vae.config.patch_size is not None:
        raise LisaError(f"{source!r} counts time for each token (Wan 2.2 TI2V)", _OTHERS)
    if config.image_dim is not None or config.added_kv_proj_dim is not None:
        raise LisaError(f"the transformer of {source!r} reads a picture too (image-to-video)", _OTHERS)
    check_channels(source, config.in_channels, config.out_channels, pipeline.vae.config.z_dim, _OTHERS)
