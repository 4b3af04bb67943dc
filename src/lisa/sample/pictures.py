"""Sampling pictures with a diffusers pipeline, one seed per picture, so that a batch gives what single calls give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Request:
    """One picture to make: ``condition`` is uint8 (H, W, 3), at the size of the picture."""

    key: str
    prompt: str
    condition: np.ndarray
    seed: int


@dataclass(frozen=True)
class SamplerSettings:
    """``steps`` of the sampler, classifier-free ``guidance`` (1: none), ``control_scale`` of the residuals."""

    steps: int = 20
    guidance: float = 3.0
    control_scale: float = 1.0
    batch_size: int = 16


def fast_scheduler(pipeline: Any) -> None:
    """DPM-Solver++ from the model's own noise schedule: good pictures in 20 steps."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)


@torch.no_grad()
def sample_pictures(
    pipeline: Any, requests: Sequence[Request], settings: SamplerSettings
) -> Iterator[tuple[Request, np.ndarray]]:
    """Pictures (uint8, H x W x 3) for ``requests``, batch by batch; all conditions of a batch have one size."""
    for first in range(0, len(requests), settings.batch_size):
        chosen = requests[first : first + settings.batch_size]
        height, width = chosen[0].condition.shape[:2]
        images = pipeline(
            [request.prompt for request in chosen],
            image=[Image.fromarray(request.condition) for request in chosen],
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            controlnet_conditioning_scale=settings.control_scale,
            generator=[torch.Generator().manual_seed(request.seed) for request in chosen],
            output_type="np",
        ).images
        yield from zip(chosen, (np.asarray(images) * 255).round().astype(np.uint8), strict=True)
