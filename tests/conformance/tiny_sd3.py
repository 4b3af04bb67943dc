"""Stable Diffusion 3 and 3.5, and the layout of the 8B ControlNets."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tiny
import tiny_text
from conformance.row import Row
from lisa.sides.base import SideOptions

POOLED, JOINT = 24, 48  # of both CLIPs together; of T5, wider than both CLIPs together, as in the public model


def make_clip(seed: int, width: int, projection: int) -> tuple[Any, Any]:
    """A tokenizer, and a CLIP text encoder with a projection."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer, plain = tiny.make_text()
    sizes = {"hidden_size": width, "intermediate_size": width, "projection_dim": projection, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    return tokenizer, CLIPTextModelWithProjection(CLIPTextConfig(**(plain.config.to_dict() | sizes)))


def make_vae(shift: float | None = 0.0609, scaling: float = 1.5305, channels: int = 4) -> Any:
    """Factor 8, without the convolutions around the latent that Stable Diffusion 1 has."""
    from diffusers import AutoencoderKL

    torch.manual_seed(30)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_pipeline(version: str = "3", *, t5: bool = True, layers: int = 4, shift: float | None = 0.0609) -> Any:
    """``version`` 3.5: normalised queries and keys, two attentions in the first blocks (medium)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(31)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=16,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=16,
        **({"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if version == "3.5" else {}),
    )
    (tokenizer, clip), (tokenizer_2, clip_2) = make_clip(32, 16, 8), make_clip(33, 24, 16)
    tokenizer_3, encoder_3 = tiny_text.t5(JOINT) if t5 else (None, None)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(shift),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=clip_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    )


def save_as_public(pipeline: Any, path: Path, t5: str, variants: tuple[str | None, ...] = (None,)) -> Path:
    """Transformer and T5 in several files with an index, as large models come; index entries named as there."""
    pipeline.set_progress_bar_config(disable=True)
    for variant in sorted(variants, key=str):  # plain ("None") first: halving loses precision
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        if variant is not None:
            for part in parts.values():
                part.half()
        pipeline.save_pretrained(path, variant=variant)
        for name in ("transformer", t5):
            if name in parts:
                for single in (path / name).glob("*.safetensors"):
                    if (variant or "") in single.name and "-of-" not in single.name:
                        single.unlink()
                parts[name].save_pretrained(path / name, variant=variant, max_shard_size="60KB")
    index = json.loads((path / "model_index.json").read_text())
    tokenizer = t5.replace("text_encoder", "tokenizer")
    if index[tokenizer][0] is not None:
        index[tokenizer] = ["transformers", "T5TokenizerFast"]
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    return path


def make_folder(path: Path, variants: tuple[str | None, ...] = (None,), **options: Any) -> Path:
    return save_as_public(make_pipeline(**options), path, "text_encoder_3", variants)


def make_large_side(path: Path) -> Path:
    """A ControlNet in the 8B layout: no text, no positions of its own, pooled text passed on."""
    from diffusers import SD3ControlNetModel

    torch.manual_seed(34)
    SD3ControlNetModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=None,
        caption_projection_dim=16,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=16,
        pos_embed_type=None,
        use_pos_embed=False,
        force_zeros_for_pooled_projection=False,
    ).save_pretrained(path)
    return path


ROWS = [
    Row("sd3-controlnet", "flow", make_folder, lambda side: side.pos_embed, label="3", shares=1),
    Row(
        "sd3-controlnet",
        "flow",
        partial(make_folder, version="3.5"),
        lambda side: side.pos_embed_input,
        planted_in="condition",
        label="3.5",
        side=SideOptions(depth=2),
        shares=1,
    ),
    Row(
        "sd3-controlnet",
        "flow",
        partial(make_folder, version="3.5"),
        lambda side: side.pos_embed_input,
        planted_in="condition",
        in_another_form=("hidden_states",),  # embedded, as the pipeline lets it embed
        label="8B",
        init=make_large_side,
        shares=1,
    ),
]
