"""Z-Image's structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny_text
from conformance.row import CAPTIONS, Row
from conformance.tiny_sd3 import make_vae
from lisa.sides.base import SideOptions
from lisa.sides.zimage import image_tokens


def make_transformer(**changes: Any) -> Any:
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    config = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 6,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [8, 4, 4],
        "axes_lens": [1024, 64, 64],
    }
    model = ZImageTransformer2DModel(**config | changes)
    with torch.no_grad():  # trained ones are not zero
        model.x_pad_token.normal_()
        model.cap_pad_token.normal_()
    return model


def make_pipeline(scheduler: Any = None, **changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    tokenizer, text_encoder = tiny_text.qwen3()
    pipeline = ZImagePipeline(
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(shift=0.1159, scaling=0.3611),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=make_transformer(**changes),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, shard: str = "10GB", **options: Any) -> Path:
    make_pipeline(**options).save_pretrained(path, max_shard_size=shard)
    return path


def tokens(output: Tensor, size: tuple[int, int]) -> Tensor:
    """The network strings the pictures of a batch together before it embeds them."""
    return image_tokens(output.unflatten(0, (len(CAPTIONS), -1)), size)


ROWS = [
    Row(
        "zimage-controlnet",
        "flow",
        make_folder,
        embedder=lambda side: side.control_all_x_embedder["2-1"],
        tokens=tokens,
        planted_in="condition",
        sizes=((16, 16), (12, 20)),  # 64 tokens, and 60 that are padded to 64
        side=SideOptions(depth=3),
        shares=3,  # two refiners and a layer
    )
]
