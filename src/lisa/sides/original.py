"""Parameter names of the code that a kind of side network comes from.

ControlNet: lllyasviel/ControlNet (``cldm``), named as Stable Diffusion's own UNet. T2I-Adapter: TencentARC/T2I-Adapter.
Each function walks through the blocks of a diffusers module, so that any number of levels and layers comes out right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lisa.common.errors import LisaError

#: What all names of a ControlNet begin with in the files its authors gave out; others leave it away.
CONTROL_PREFIX = "control_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_controlnet_names(module: Any) -> dict[str, str]:
    """Names of a ``ControlNetModel``'s parameters -> original ones.

    The original code has eight convolutions for the condition; where latents are not an eighth of the picture, there
    are fewer or more, and their numbers go on by the same rule.

    Raises:
        LisaError: the network has a part that the original does not.
    """
    parts = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.attentions.0": "middle_block.1",
        "controlnet_mid_block": "middle_block_out.0",
    }
    embedding = module.controlnet_cond_embedding
    convolutions = ["conv_in", *[f"blocks.{i}" for i in range(len(embedding.blocks))], "conv_out"]
    for i, name in enumerate(convolutions):  # an activation stands between any two
        parts[f"controlnet_cond_embedding.{name}"] = f"input_hint_block.{2 * i}"
    for i in range(len(module.controlnet_down_blocks)):
        parts[f"controlnet_down_blocks.{i}"] = f"zero_convs.{i}.0"
    number = 0
    for i, block in enumerate(module.down_blocks):
        for j in range(len(block.resnets)):
            number += 1
            parts |= _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0")
            parts[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
        if block.downsamplers is not None:
            number += 1
            parts[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    for i in range(len(module.mid_block.resnets)):
        parts |= _resnet(f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    return {name: CONTROL_PREFIX + new for name, new in _renamed(module, parts).items()}


def original_adapter_names(module: Any) -> dict[str, str]:
    """Names of a ``T2IAdapter``'s parameters -> original ones, which number all blocks of a full adapter in one row."""
    parts = {"adapter.conv_in": "conv_in"}
    light = module.config.adapter_type == "light_adapter"
    number = 0
    for i, block in enumerate(module.adapter.body):
        first = i if light else number
        parts |= {f"adapter.body.{i}.{name}": f"body.{first}.{name}" for name in ("in_conv", "out_conv")}
        for j in range(len(block.resnets)):
            parts[f"adapter.body.{i}.resnets.{j}"] = f"body.{i}.body.{j}" if light else f"body.{number}"
            number += 1
    return _renamed(module, parts)


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{new}" for name, new in _RESNET.items()}


def _renamed(module: Any, parts: Mapping[str, str]) -> dict[str, str]:
    """Each parameter by the longest part that its name begins with."""
    names = {}
    for name in module.state_dict():
        pieces = name.split(".")
        starts = (".".join(pieces[:length]) for length in range(len(pieces), 0, -1))
        part = next((start for start in starts if start in parts), None)
        if part is None:
            raise LisaError(
                f"the original layout of a {type(module).__name__} has no place for {name!r}",
                "Export it with diffusers' names",
            )
        names[name] = parts[part] + name[len(part) :]
    return names
