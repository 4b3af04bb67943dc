"""Shared by the tests of side networks."""

from __future__ import annotations

from typing import Any

import torch

import tiny


def make_sdxl_like(seed: int = 0) -> Any:
    """SDXL's structure: three levels (9 down residuals), pooled text and picture sizes beside the text."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=tiny.TEXT_WIDTH,
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 10,
        norm_num_groups=4,
    )
