"""AnimateDiff on Stable Diffusion 1.5's structure, with a level less."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tiny
from conformance.row import Row
from conformance.tiny_sd import conv_in

FRAMES = 8  # that the motion modules have positions for


def make_adapter(**changes: Any) -> Any:
    from diffusers import MotionAdapter

    torch.manual_seed(6)
    config = {
        "block_out_channels": (8, 16, 16),
        "motion_layers_per_block": 2,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 4,
        "motion_max_seq_length": FRAMES,
    }
    return MotionAdapter(**config | changes)


def make_pipeline(prediction: str = "epsilon", **adapter: Any) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    tokenizer, encoder = tiny.make_text()
    pipeline = AnimateDiffPipeline(
        vae=tiny.make_vae(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=tiny.make_unet(levels=3),
        motion_adapter=make_adapter(**adapter),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="linspace",
            prediction_type=prediction,
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_folder(path: Path, prediction: str = "epsilon") -> Path:
    make_pipeline(prediction).save_pretrained(path)
    return path


ROWS = [
    Row(
        "animatediff-controlnet",
        prediction,
        partial(make_folder, prediction=prediction),
        conv_in,
        cell=1,
        reach=1,
        sizes=((8, 8), (8, 12)),
        in_another_form=("timestep",),  # one for each frame, not one for all
        free_depth=False,
    )
    for prediction in ("epsilon", "v_prediction")
]
