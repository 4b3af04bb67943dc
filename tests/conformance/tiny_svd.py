"""Stable Video Diffusion: the layout of the public folder, and networks of its structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from conformance.row import Row
from conformance.tiny_sd import conv_in

WIDTH = 32  # of the conditioning frame's embedding


def make_unet(*, frames: int = 3, **changes: Any) -> Any:
    """Two levels, 6 down residuals. Widths over 32 and unlike: norms have 32 groups, and one of a single channel would
    leave the bias before it without a gradient.
    """
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (64, 96),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "cross_attention_dim": WIDTH,
        "num_attention_heads": (2, 4),
        "num_frames": frames,
    }
    return UNetSpatioTemporalConditionModel(**{**config, **changes})


def make_vae(levels: int = 3) -> Any:
    from diffusers import AutoencoderKLTemporalDecoder

    torch.manual_seed(1)
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * levels, down_block_types=("DownEncoderBlock2D",) * levels, latent_channels=4
    )


def make_image_encoder(width: int = WIDTH) -> Any:
    """Of pictures of 224x224, to which the pipeline brings every frame."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(2)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
        )
    )


def make_scheduler(**changes: Any) -> Any:
    """As the public folder has it."""
    from diffusers import EulerDiscreteScheduler

    config: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_max": 700.0,
        "sigma_min": 0.002,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }
    return EulerDiscreteScheduler(**{**config, **changes})


def make_pipeline(**changes: Any) -> Any:
    from diffusers import StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    pipeline = StableVideoDiffusionPipeline(
        vae=make_vae(),
        image_encoder=make_image_encoder(),
        unet=make_unet(**changes),
        scheduler=make_scheduler(),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, shard: str = "10GB", **changes: Any) -> Path:
    make_pipeline(**changes).save_pretrained(path, max_shard_size=shard)
    return path


ROWS = [Row("svd-controlnet", "edm", make_folder, conv_in, cell=1, reach=1, sizes=((8, 8), (8, 12)), free_depth=False)]
