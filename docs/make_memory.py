"""Writes the table of docs/memory.md from parameter counts; `--check` only says whether it is up to date.

Networks are built on the meta device, without weights, from the configurations of the public models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import marked_page
import torch
from torch import nn

from lisa.pairs import pair_spec
from lisa.sides.low_rank import add_low_rank

TARGET = Path(__file__).parent / "memory.md"
BEGIN, END = "<!-- table: docs/make_memory.py -->\n", "<!-- end of table -->"
RANK = 64
# Bits per weight of a linear layer. nf4: 4, an 8-bit constant per 64 of them, and a float32 per 256 constants.
LINEAR_BITS = {"bf16": 16.0, "int8": 8.0, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}
# Main network, adapters or all of the side network.
SETTINGS = (("bf16", None), ("bf16", RANK), ("int8", RANK), ("nf4", RANK))


def sdxl() -> tuple[nn.Module, list[nn.Module]]:
    """Stable Diffusion XL base 1.0."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return unet, [clip_l(), clip_g()]


def sd3() -> tuple[nn.Module, list[nn.Module]]:
    """Stable Diffusion 3 medium, with T5."""
    from diffusers import SD3Transformer2DModel

    sizes = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
    return SD3Transformer2DModel(**sizes), [clip_l(), clip_g(), t5_xxl()]


def flux() -> tuple[nn.Module, list[nn.Module]]:
    """Flux.1 dev."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True), [clip_l(), t5_xxl()]


def svd() -> tuple[nn.Module, list[nn.Module]]:
    """Stable Video Diffusion, img2vid and img2vid-xt; it reads pictures instead of text."""
    from diffusers import UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    pictures = CLIPVisionConfig(**sizes, patch_size=14, projection_dim=1024, hidden_act="gelu")
    return UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)), [
        CLIPVisionModelWithProjection(pictures)
    ]


def clip_l() -> nn.Module:
    """The text encoder of Stable Diffusion 1.x."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))


def clip_g() -> nn.Module:
    """OpenCLIP's bigG."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=1280))


def t5_xxl() -> nn.Module:
    """T5 1.1's encoder of 24 layers."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))


FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "Stable Diffusion XL": ("sdxl-controlnet", sdxl),
    "Stable Diffusion 3 medium": ("sd3-controlnet", sd3),
    "Flux.1 dev": ("flux-controlnet", flux),
    "Stable Video Diffusion": ("svd-controlnet", svd),
}


def count(network: nn.Module, trained: bool = False) -> int:
    """Parameters, or those that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


def main_bytes(network: nn.Module, kind: str) -> float:
    """Of a main network whose linear layers' weights are kept in ``kind``, and the rest in 16 bits."""
    linear = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
    return 2 * (count(network) - linear) + linear * LINEAR_BITS[kind] / 8


def rows(family: str) -> list[str]:
    """The lines of one family: 4 bytes per weight of the side network, 12 more (gradient, AdamW) where trained."""
    pair, build = FAMILIES[family]
    lines = []
    with torch.device("meta"):
        network, encoders = build()
        for kind, rank in SETTINGS:
            side = pair_spec(pair).reference_side()
            if rank is not None:
                add_low_rank(side, rank)
            parts = [main_bytes(network, kind), 4 * count(side.module), 12 * count(side.module, trained=True)]
            total, text = sum(parts), 2 * sum(count(encoder) for encoder in encoders)
            cells = [f"{value / 2**30:.1f}" for value in (*parts, total, text)]
            how = "in full" if rank is None else f"rank {rank}"
            lines.append(f"| {family} | {kind} | {how} | {' | '.join(cells)} |")
    return lines


def table() -> str:
    """The whole table."""
    head = [
        "| model | main network | side network | main, GiB | side, GiB | gradients and AdamW, GiB | together, GiB "
        "| text or image encoders, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *[line for family in FAMILIES for line in rows(family)]]) + "\n"


if __name__ == "__main__":
    sys.exit(not marked_page.write(TARGET, [(BEGIN, table(), END)]))
