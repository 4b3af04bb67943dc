"""What a single file says about itself: the ModelSpec keys of Stability AI, and ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lisa.common.model_folders import is_hub_name

_IMPLEMENTATIONS = {
    "ControlNetModel": "https://github.com/lllyasviel/ControlNet",
    "T2IAdapter": "https://github.com/TencentARC/T2I-Adapter",
}
# As ModelSpec and kohya's scripts call the main networks, by what the names of pairs begin with.
_FAMILIES = {
    "sd": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3",
    "flux": "flux-1",
    "qwen": "qwen-image",
    "hunyuan": "hunyuan-dit",
    "zimage": "z-image",
}
_SD2_TEXT_WIDTH = 1024


def architecture(pair: str, config: Mapping[str, Any]) -> str:
    """ModelSpec's architecture of a side network: its main network's and its own, ``stable-diffusion-v1/controlnet``.

    Args:
        pair: name of the kind of pair.
        config: of the side network; tells Stable Diffusion 2 from 1, where it can.
    """
    family, _, side = pair.partition("-")
    base = _FAMILIES.get(family, family)
    if family == "sd" and config.get("cross_attention_dim") == _SD2_TEXT_WIDTH:
        base = "stable-diffusion-v2"
    return f"{base}/{side}"


def model_spec(
    title: str, pair: str, config: Mapping[str, Any], *, original: bool, facts: Mapping[str, str]
) -> dict[str, str]:
    """Metadata of a single file, all but the hash.

    Args:
        title: for people.
        pair: name of the kind of pair.
        config: of the side network, with its class; kept, so that the file can be loaded without asking anybody.
        original: whether the names of the tensors are the original ones.
        facts: more of our own, without prefix; empty ones are left out.
    """
    kind = str(config["_class_name"])
    plain = {name: value for name, value in config.items() if name != "_name_or_path"}
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture(pair, config),
        "implementation": _IMPLEMENTATIONS[kind] if original else "diffusers",
        "title": title,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    own = {"pair": pair, "config": json.dumps(plain, sort_keys=True), **{k: v for k, v in facts.items() if v}}
    return {f"modelspec.{k}": v for k, v in spec.items()} | {f"lisa.{k}": v for k, v in own.items()}


def public_name(source: str) -> str:
    """What to call a model or a data set in what is shared: its name on the Hub or here, else the last part of a path.

    Example:
        >>> public_name("../models/sd15")
        'sd15'
    """
    return source if on_hub(source) or not _is_path(source) else Path(source.replace("\\", "/")).name


def on_hub(source: str) -> bool:
    """Whether ``source`` is a name on the Hub, and no folder here."""
    return is_hub_name(source) and not Path(source).exists()


def _is_path(source: str) -> bool:
    return Path(source).exists() or any(mark in source for mark in "/\\")
