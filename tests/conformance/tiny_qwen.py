"""Qwen-Image's structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiny_text
from conformance.row import Row

MEAN, DEVIATION = [-0.75, 0.5, 0.1, -0.2], [2.8, 1.5, 2.0, 0.7]  # as the public one: neither is 0 or 1


def make_transformer(**changes: Any) -> Any:
    from diffusers import QwenImageTransformer2DModel

    torch.manual_seed(0)
    config = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 5,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
    }
    model = QwenImageTransformer2DModel(**config | changes)
    with torch.no_grad():  # a norm that was not copied is noticed
        model.txt_norm.weight.uniform_(0.5, 2.0)
    return model


def make_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(1)
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=MEAN, latents_std=DEVIATION
    )


def make_pipeline(scheduler: Any = None, **changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    tokenizer, text_encoder = tiny_text.qwen_vl()
    pipeline = QwenImagePipeline(
        scheduler=scheduler
        or FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift=1.0,
            shift_terminal=0.02,
        ),
        vae=make_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=make_transformer(**changes),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, shard: str = "10GB", **options: Any) -> Path:
    make_pipeline(**options).save_pretrained(path, max_shard_size=shard)
    return path


ROWS = [Row("qwen-controlnet", "flow", make_folder, embedder=lambda side: side.img_in, shares=1)]
