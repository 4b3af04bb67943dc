"""Sana 1.0's structure; its autoencoder has two levels less, so that pictures stay small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiny_text
from conformance.row import Row


def make_transformer(**changes: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 6,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 16,
    }
    return SanaTransformer2DModel(**config | changes)


def make_vae() -> Any:
    from diffusers import AutoencoderDC

    torch.manual_seed(1)
    levels: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        levels[f"{part}_block_types"] = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
        levels[f"{part}_block_out_channels"] = (4, 8, 8, 8)
        levels[f"{part}_layers_per_block"] = (1, 1, 1, 1)
        levels[f"{part}_qkv_multiscales"] = ((), (), (), (5,))
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **levels)


def make_pipeline(scheduler: Any = None, **changes: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    tokenizer, text_encoder = tiny_text.gemma()
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=make_transformer(**changes),
        scheduler=scheduler
        or DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, shard: str = "10GB", variant: str | None = None, **options: Any) -> Path:
    pipeline = make_pipeline(**options)
    if variant is not None:
        for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            module.to(torch.bfloat16)
    pipeline.save_pretrained(path, max_shard_size=shard, variant=variant)
    return path


ROWS = [
    # The embedder is that of the condition: x_t goes through the same patches, but the hook would catch both.
    Row(
        "sana-controlnet",
        "flow",
        make_folder,
        embedder=lambda side: side.input_block,
        planted_in="condition",
        shares=2,
    )
]
