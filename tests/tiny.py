"""Tiny Stable Diffusion models with random weights, in diffusers' real layout, and what tests do with them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lisa.pairs import Inputs, Pair, pair_spec
from lisa.sides.base import SideOptions

TEXT_WIDTH = 16
WORDS = 8  # tokens per caption


def make_unet(*, v2: bool = False, in_channels: int = 4, levels: int = 4, seed: int = 0) -> Any:
    """SD 1.5's structure (12 down residuals, strides 1 to 8), or SD 2.1's with ``v2``; with fewer levels, a part."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 8, 16, 16)[4 - levels :],
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=[1, 2, 2, 4][4 - levels :] if v2 else 2,
        use_linear_projection=v2,
        norm_num_groups=4,
    )


def make_vae(factor: int, seed: int = 0) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(seed + 1)
    levels = factor.bit_length()
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )


def make_text(seed: int = 0) -> tuple[Any, Any]:
    """A CLIP tokenizer that knows letters only, and a text encoder for it."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=WORDS)
    torch.manual_seed(seed + 2)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=WORDS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return tokenizer, encoder


def make_pipeline(
    prediction: str = "epsilon", *, factor: int = 8, v2: bool = False, in_channels: int = 4, levels: int = 4
) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer, encoder = make_text()
    return StableDiffusionPipeline(
        vae=make_vae(factor),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=make_unet(v2=v2, in_channels=in_channels, levels=levels),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        ),
        safety_checker=None,  # both are null in model_index.json, as in many folders on the Hub
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_folder(path: Path, *args: Any, variants: tuple[str | None, ...] = (None,), **options: Any) -> Path:
    """Save a tiny pipeline, once per variant; named variants are stored in fp16."""
    pipeline = make_pipeline(*args, **options)
    pipeline.set_progress_bar_config(disable=True)
    for variant in sorted(variants, key=str):  # plain ("None") first: halving loses precision
        if variant is not None:
            for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
                module.half()
        pipeline.save_pretrained(path, variant=variant)
    return path


def randomise_zero_modules(controlnet: Any, scale: float = 0.2, seed: int = 3) -> Any:
    """Make every zero-initialised module of a ControlNet random: with zeros, tests of equality pass vacuously."""
    generator = torch.Generator().manual_seed(seed)
    ends = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    with torch.no_grad():
        for module in [*ends, controlnet.controlnet_cond_embedding.conv_out]:
            for parameter in module.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return controlnet


@cache
def _loaded(source: str) -> Any:
    return pair_spec("sd-controlnet").load_main(source)


def load_main(source: str | Path) -> Any:
    """A main network of one's own; files are read once per session."""
    return copy.deepcopy(_loaded(str(source)))


def make_pair(source: str | Path, *, share_prior: bool = True, randomise: bool = True, seed: int = 0) -> Pair:
    spec = pair_spec("sd-controlnet")
    main = load_main(str(source))
    torch.manual_seed(seed)
    side = spec.make_side(main, SideOptions())
    side.module.train()
    if randomise:
        randomise_zero_modules(side.module)
    return Pair(spec, main, side, share_prior=share_prior)


def make_inputs(main: Any, height: int = 8, width: int = 8, batch: int = 2, seed: int = 0) -> tuple[Inputs, Tensor]:
    """Random inputs of a pair with latents of (height, width), and a random target."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pixels = torch.rand(batch, 3, height * main.latent_factor, width * main.latent_factor, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    context = {"encoder_hidden_states": normal(batch, WORDS, TEXT_WIDTH)}
    return Inputs(normal(batch, 4, height, width), t, context, pixels), normal(batch, 4, height, width)


def traces(network: nn.Module) -> dict[str, list[str]]:
    """Everything a hook, a patch or a wrapper leaves on a network: empty for an untouched one."""
    found = {}
    for name, module in network.named_modules():
        hooks = [key for key, value in module.__dict__.items() if key.endswith("_hooks") and value]
        patched = [key for key in module.__dict__ if key in ("forward", "__call__", "_old_forward", "_hf_hook")]
        if hooks or patched or type(module).__module__.startswith("lisa."):
            found[name] = hooks + patched
    return found
