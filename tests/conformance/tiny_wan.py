"""Wan 2.1's structure; its autoencoder has a level less, so that clips stay small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiny_text
from conformance.row import Row
from lisa.sides.base import SideOptions

LATENTS = 4


def make_transformer(**changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 6,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**config | changes)


def make_vae() -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENTS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[-0.7, 0.2, 0.1, -0.3],
        latents_std=[2.8, 1.4, 2.3, 0.7],
        scale_factor_spatial=4,
    )


def make_pipeline(scheduler: Any = None, transformer: Any = None) -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    tokenizer, text_encoder = tiny_text.umt5()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        scheduler=scheduler
        or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer or make_transformer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, shard: str = "10GB", variant: str | None = None, **options: Any) -> Path:
    pipeline = make_pipeline(**options)
    if variant is not None:
        for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            torch.nn.Module.to(module, torch.bfloat16)
    pipeline.save_pretrained(path, max_shard_size=shard, variant=variant)
    return path


ROWS = [
    Row(
        "wan-vace",
        "flow",
        make_folder,
        embedder=lambda side: side.vace_patch_embedding,
        planted_in="condition",
        sizes=((8, 8), (8, 12)),
        side=SideOptions(depth=3),
    )
]
