"""HunyuanDiT: version 1.2's structure, and with sizes and style embedded, version 1.1's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tiny
import tiny_text
from conformance.row import Row


def make_transformer(*, style: bool = False, layers: int = 20, **changes: Any) -> Any:
    from diffusers import HunyuanDiT2DModel

    torch.manual_seed(0)
    return HunyuanDiT2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        hidden_size=24,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        num_layers=layers,
        mlp_ratio=2.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        use_style_cond_and_image_meta_size=style,
        **changes,
    )


def make_pipeline(prediction: str = "v_prediction", **options: Any) -> Any:
    from diffusers import DDPMScheduler, HunyuanDiTPipeline

    (tokenizer, text_encoder), (tokenizer_2, text_encoder_2) = tiny_text.bert(), tiny_text.t5()
    pipeline = HunyuanDiTPipeline(
        vae=tiny.make_vae(8),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=make_transformer(**options),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.018,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,  # both are null in model_index.json, as in the public folders
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, prediction: str = "v_prediction", shard: str = "10GB", **options: Any) -> Path:
    make_pipeline(prediction, **options).save_pretrained(path, max_shard_size=shard)
    return path


ROWS = [
    # The embedder is that of the condition: x_t goes through the same patches, but the hook would catch both.
    Row(
        "hunyuan-controlnet",
        prediction,
        partial(make_folder, prediction=prediction, style=style),
        embedder=lambda side: side.input_block,
        planted_in="condition",
        free_depth=False,
        shares=11,  # of 20: half, and the middle one
    )
    for prediction, style in (("v_prediction", False), ("epsilon", True))
]
