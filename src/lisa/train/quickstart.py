"""What ``lisa quickstart`` trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError, choose
from lisa.train.config import TrainConfig
from lisa.train.presets import on_top
from lisa.train.settings import check_settings

#: What ``lisa quickstart`` trains: an embedded model on scenes, in minutes on two cores.
QUICKSTART: dict[str, Any] = {
    "preset": "sooner",
    "data": {"source": "scenes", "held_out": 64, "cache": ["latents", "text", "conditions"]},
    "train": {"steps": 700, "batch_size": 16, "learning_rate": 1.5e-3, "warmup": 50, "lr_schedule": "cosine"},
    "log": {
        "every": 10,
        "held_out_every": 50,
        "samples_every": 350,
        "checkpoint_every": 350,
        "checkpoint_limit": 1,
        "tracker": "none",
    },
    "sample": {"steps": 20, "guidance": 3.0, "count": 48},
}
#: What differs between the embedded models: the pair, and what was found to work for it.
QUICKSTART_MODELS: dict[str, dict[str, Any]] = {
    "tiny-sd": {"model": {"pair": "sd-controlnet"}},
    "tiny-sd3": {
        "model": {"pair": "sd3-controlnet"},
        "train": {"steps": 1_000},
        "log": {"samples_every": 500, "checkpoint_every": 500},
        "sample": {"count": 24},  # its pictures are made one at a time
    },
    "tiny-svd": {
        "model": {"pair": "svd-controlnet", "log_sigma": [0.0, 1.5]},  # the noise levels that it was pretrained with
        "data": {"source": "moving-scenes", "frames": 8, "size": 32, "held_out": 32},
        "align": {"layer": "down.3"},  # one layer per level: the last at half the latent's size, as down.5 of tiny-sd
        "train": {"steps": 1_200, "batch_size": 4},
        "log": {"held_out_every": 100, "samples_every": 600, "checkpoint_every": 600},
        "sample": {"count": 24},
    },
}
_MOST_SCENES = 3_000


def quickstart_config(
    *,
    out: Path,
    condition: str = "edges",
    model: str = "tiny-sd",
    steps: int | None = None,
    seed: int = 0,
    plain: bool = False,
    aligned: bool = False,
    overwrite: bool = False,
) -> TrainConfig:
    """The quickstart as a configuration of the trainer.

    By the preset; ``aligned``: with alignment on top of it; ``plain``: the baseline, with neither.

    Raises:
        LisaError: there is no such model, ``plain`` and ``aligned`` together, or a setting is impossible.
    """
    if plain and aligned:
        raise LisaError(
            "the quickstart cannot be plain and aligned", "plain is the baseline, without alignment: take one"
        )
    own = QUICKSTART_MODELS[choose("embedded model", model, QUICKSTART_MODELS)]
    raw = on_top(QUICKSTART, own)
    raw["data"]["condition"] = condition
    raw["model"]["path"] = model
    if plain:
        del raw["preset"]
    if plain or aligned:
        raw["align"] = {**raw.get("align", {}), "enabled": aligned}
    if steps is not None:
        raw["train"]["steps"] = steps
    # Drawing and encoding scenes takes time too: no more of them than the steps can see.
    seen = raw["train"]["steps"] * raw["train"]["batch_size"]
    raw["data"]["scenes"] = raw["data"]["held_out"] + min(_MOST_SCENES, seen)
    return check_settings(TrainConfig, {**raw, "out": out, "seed": seed, "overwrite": overwrite})
