"""A diffusers folder as a single-file checkpoint with the original (CompVis) key names, for tests of loading one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
}


_OPEN_CLIP_NAMES = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn.": ".attn.",
}


def write_single_file(folder: Path, file: Path, layers_per_block: int = 2) -> Path:
    """Write the UNet, VAE and CLIP text encoder of ``folder`` into ``file``."""
    return _write(_unet_and_vae(folder, layers_per_block) | _clip(folder, "cond_stage_model.transformer"), file)


def write_sdxl_file(folder: Path, file: Path, layers_per_block: int = 2) -> Path:
    """The same for SDXL, whose second text encoder has the key names of OpenCLIP."""
    state = _unet_and_vae(folder, layers_per_block) | _clip(folder, "conditioner.embedders.0.transformer")
    return _write(state | _open_clip(folder, "conditioner.embedders.1.model"), file)


def _write(state: dict[str, Tensor], file: Path) -> Path:
    save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
    return file


def _clip(folder: Path, prefix: str) -> dict[str, Tensor]:
    text = load_file(folder / "text_encoder" / "model.safetensors")
    return {f"{prefix}.text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}


def _open_clip(folder: Path, prefix: str) -> dict[str, Tensor]:
    """One weight for query, key and value, and a projection that is multiplied from the other side."""
    text = load_file(folder / "text_encoder_2" / "model.safetensors")
    state = {f"{prefix}.text_projection": text.pop("text_projection.weight").T}
    for key in [key for key in text if ".q_proj." in key]:
        joined = torch.cat([text.pop(key.replace(".q_proj.", f".{name}_proj.")) for name in "qkv"])
        text[key.replace(".q_proj.", ".in_proj_")] = joined
    for key, value in text.items():
        for ours, theirs in _OPEN_CLIP_NAMES.items():
            key = key.replace(ours, theirs)
        state[f"{prefix}.{key}"] = value
    return state


def _unet_and_vae(folder: Path, layers_per_block: int) -> dict[str, Tensor]:
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    state: dict[str, Tensor] = {}
    attended = {key.split(".attentions")[0] for key in unet if key.startswith("up_blocks") and ".attentions" in key}
    for key, value in unet.items():
        state[f"model.diffusion_model.{_unet_key(key, layers_per_block + 1, attended)}"] = value
    levels = 1 + max(int(key.split(".")[2]) for key in vae if key.startswith("decoder.up_blocks"))
    for key, value in vae.items():
        name = _vae_key(key, levels)
        attention = ".attn_1." in name and name.endswith("weight") and ".norm." not in name
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if attention else value
    return state


def _unet_key(key: str, per_block: int, attended: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    where, kind, number, rest = _split(key)
    if where == "mid_block":
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{_resnet(kind, rest)}"
    side, block = where.split(".")
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{1 + int(block) * per_block + per_block - 1}.0.{rest.replace('conv', 'op', 1)}"
        return f"input_blocks.{1 + int(block) * per_block + number}.{int(kind == 'attentions')}.{_resnet(kind, rest)}"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * per_block + per_block - 1}.{2 if where in attended else 1}.{rest}"
    return f"output_blocks.{int(block) * per_block + number}.{int(kind == 'attentions')}.{_resnet(kind, rest)}"


def _split(key: str) -> tuple[str, str, int, str]:
    parts = key.split(".")
    head = 1 if parts[0] == "mid_block" else 2
    return ".".join(parts[:head]), parts[head], int(parts[head + 1]), ".".join(parts[head + 2 :])


def _resnet(kind: str, rest: str) -> str:
    name, _, end = rest.rpartition(".")
    return f"{_UNET_RESNET[name]}.{end}" if kind == "resnets" else rest


def _vae_key(key: str, levels: int) -> str:
    for ours, theirs in _VAE_NAMES.items():
        key = key.replace(ours, theirs)
    parts = key.split(".")
    if "down_blocks" in parts:
        parts[parts.index("down_blocks")] = "down"
    if "up_blocks" in parts:
        at = parts.index("up_blocks")
        parts[at : at + 2] = ["up", str(levels - 1 - int(parts[at + 1]))]
    return ".".join(parts)
