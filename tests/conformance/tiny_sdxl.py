"""Stable Diffusion XL, as in the folder of stabilityai/stable-diffusion-xl-base-1.0."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tiny
from conformance.row import Row
from conformance.tiny_sd import conv_in

WIDTHS = (16, 24)  # of the two text encoders, whose outputs are put side by side
POOLED = 12
SIZE_CHANNELS = 4


def make_unet(seed: int = 0, **changes: Any) -> Any:
    """SDXL's structure: no attention in the first block, more transformer layers in each further one."""
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": sum(WIDTHS),
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
        "projection_class_embeddings_input_dim": POOLED + 6 * SIZE_CHANNELS,
        "norm_num_groups": 4,
    }
    torch.manual_seed(seed)
    return UNet2DConditionModel(**options | changes)


def make_encoder(width: int, tokenizer: Any, seed: int) -> Any:
    """The first encoder has no projection, the second one gives the pooled text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=POOLED,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tiny.WORDS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return CLIPTextModel(config) if width == WIDTHS[0] else CLIPTextModelWithProjection(config)


def make_pipeline(prediction: str = "epsilon", *, zeros: bool = True, **unet: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer, _ = tiny.make_text()
    tokenizer_2, _ = tiny.make_text()
    tokenizer_2.pad_token = "!"
    vae = tiny.make_vae(8)
    vae.register_to_config(scaling_factor=0.13025, force_upcast=True)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=make_encoder(WIDTHS[0], tokenizer, 5),
        text_encoder_2=make_encoder(WIDTHS[1], tokenizer_2, 6),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=make_unet(**unet),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=zeros,
    )


def make_folder(
    path: Path,
    prediction: str = "epsilon",
    *,
    variants: tuple[str | None, ...] = (None,),
    shard: str = "10GB",
    **options: Any,
) -> Path:
    """Save a tiny pipeline, once per variant; named variants are stored in fp16."""
    pipeline = make_pipeline(prediction, **options)
    for variant in sorted(variants, key=str):  # plain ("None") first: halving loses precision
        if variant is not None:
            for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
                module.half()
        pipeline.save_pretrained(path, variant=variant, max_shard_size=shard)
    index = json.loads((path / "model_index.json").read_text())
    for name in ("feature_extractor", "image_encoder"):  # the public folder does not name them
        index.pop(name, None)
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    return path


ROWS = [
    Row(
        pair,
        prediction,
        partial(make_folder, prediction=prediction),
        conv_in,
        cell=1,
        reach=1,
        free_depth=False,
        shares=4,
    )
    for pair in ("sdxl-controlnet", "sdxl-controlnet-union")
    for prediction in ("epsilon", "v_prediction")
]
