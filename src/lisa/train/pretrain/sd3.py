"""A small Stable Diffusion 3: a flow transformer (MMDiT, arXiv 2403.03206) with two CLIP encoders and a T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lisa.processes.flow import RectifiedFlowProcess
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.neighbours import look_at_neighbours
from lisa.train.pretrain.text import make_clip_with_projection, make_t5, make_t5_tokenizer, make_tokenizer

#: T5 tokens that diffusers' pipeline asks for unless told otherwise.
PIPELINE_TOKENS = 256


class SD3Denoiser(nn.Module):
    """See :class:`lisa.train.pretrain.denoiser.Denoiser`.

    Args:
        config: of the pretraining.
        captions: the tokenizers learn their words.
        latent_size: side of the latent.
    """

    def __init__(self, config: PretrainConfig, captions: Sequence[str], latent_size: int) -> None:
        super().__init__()
        text, settings = config.text, config.transformer
        self.tokenizer = make_tokenizer(captions, text)
        self.t5_tokenizer = make_t5_tokenizer(captions, text)
        self.text_encoder = make_clip_with_projection(self.tokenizer, text)
        self.text_encoder_2 = make_clip_with_projection(self.tokenizer, text)
        self.text_encoder_3 = make_t5(self.t5_tokenizer, text)
        self.transformer = _make_transformer(config, latent_size)
        self.process = RectifiedFlowProcess(shift=settings.shift)
        self.length, self.long_captions = text.length, settings.long_captions

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Ids for the CLIP encoders (B, length) and for T5 (B, length)."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        captions = list(captions)
        return {
            "clip": self.tokenizer(captions, **options).input_ids,
            "t5": self.t5_tokenizer(captions, **options).input_ids,
        }

    def vary(self, tokens: Mapping[str, Tensor], u: float) -> Mapping[str, Tensor]:
        """T5's ids padded to what the pipeline uses, where ``u`` is below the share of long captions.

        Nothing masks padding in this architecture, so its amount changes the prediction. Short sequences are faster by
        half; a share of long ones makes the model stand either.
        """
        short = tokens["t5"]
        more = PIPELINE_TOKENS - short.shape[1] if u < self.long_captions else 0
        return {**tokens, "t5": nn.functional.pad(short, (0, more), value=self.t5_tokenizer.pad_token_id)}

    def encode(self, tokens: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and pooled (B, P), as ``StableDiffusion3Pipeline.encode_prompt``, with gradient."""
        clips = [
            encoder(tokens["clip"], output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        t5 = self.text_encoder_3(tokens["t5"])[0]
        joined = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        joined = nn.functional.pad(joined, (0, t5.shape[-1] - joined.shape[-1]))
        return torch.cat([joined, t5], dim=1), torch.cat([clip[0] for clip in clips], dim=-1)

    def predict(self, x_t: Tensor, t: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """The velocity (B, C, h, w)."""
        states, pooled = self.encode(tokens)
        velocity: Tensor = self.transformer(
            x_t, states, pooled, timestep=self.process.model_time(t), return_dict=False
        )[0]
        return velocity

    def pipeline(self, vae: Any) -> Any:
        """The diffusers pipeline around these networks."""
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.process.shift),
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer,
            text_encoder_3=self.text_encoder_3,
            tokenizer_3=self.t5_tokenizer,
        )


def _make_transformer(config: PretrainConfig, latent_size: int) -> Any:
    from diffusers import SD3Transformer2DModel

    settings, text = config.transformer, config.text
    width = settings.heads * settings.head_width
    transformer = SD3Transformer2DModel(
        sample_size=latent_size,
        patch_size=settings.patch,
        in_channels=config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        num_layers=settings.layers,
        attention_head_dim=settings.head_width,
        num_attention_heads=settings.heads,
        joint_attention_dim=text.hidden,
        caption_projection_dim=width,
        pooled_projection_dim=2 * (text.hidden // 2),
        pos_embed_max_size=2 * latent_size // settings.patch,
        qk_norm="rms_norm",
    )
    # diffusers leaves the gates at random values, as a checkpoint will replace them. From nothing, blocks should begin
    # as the identity (adaLN-Zero, arXiv 2212.09748, section 3.2) and the velocity at zero.
    for name, module in transformer.named_modules():
        if name.endswith((".norm1.linear", ".norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    look_at_neighbours(transformer)
    return transformer
