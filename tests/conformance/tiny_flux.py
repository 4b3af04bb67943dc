"""Flux.1 dev and schnell; a ControlNet with single blocks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tiny
import tiny_text
from conformance.row import Row
from conformance.tiny_sd3 import make_vae, save_as_public

JOINT = 24
SIZES = {
    "in_channels": 16,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": JOINT,
    "pooled_projection_dim": tiny.TEXT_WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def make_pipeline(*, distilled: bool = True, layers: int = 2, shift: float | None = 0.1159) -> Any:
    """``distilled``: with a guidance embedding (dev), without it (schnell)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(40)
    transformer = FluxTransformer2DModel(num_layers=layers, num_single_layers=1, guidance_embeds=distilled, **SIZES)
    tokenizer, clip = tiny.make_text()
    tokenizer_2, encoder_2 = tiny_text.t5(JOINT)
    shifting = {"shift": 3.0, "use_dynamic_shifting": True} if distilled else {"shift": 1.0}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**shifting),
        vae=make_vae(shift, scaling=0.3611),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
    )


def make_folder(path: Path, variants: tuple[str | None, ...] = (None,), **options: Any) -> Path:
    return save_as_public(make_pipeline(**options), path, "text_encoder_2", variants)


def make_side(path: Path, *, double: int = 2, single: int = 1, **options: Any) -> Path:
    """A ControlNet as others train them: with single blocks, and a guidance embedding or not."""
    from diffusers import FluxControlNetModel

    torch.manual_seed(41)
    FluxControlNetModel(num_layers=double, num_single_layers=single, **(SIZES | options)).save_pretrained(path)
    return path


ROWS = [
    Row("flux-controlnet", "flow", make_folder, lambda side: side.x_embedder, label="dev", shares=1),
    Row(
        "flux-controlnet",
        "flow",
        partial(make_folder, distilled=False),
        lambda side: side.controlnet_x_embedder,
        planted_in="condition",
        label="schnell",
        shares=1,
    ),
    Row("flux-controlnet", "flow", make_folder, lambda side: side.x_embedder, label="single", init=make_side, shares=1),
]
