"""Run folders without a training: a random side network and the configuration that a run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiny
from lisa.common.runfolder import RunFolder
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings, save_settings
from runs import settings


def fake_run(out: Path, model: Path, condition: str | list[str], seed: int = 0, **changes: Any) -> Path:
    """A run folder whose side network heeds its condition."""
    config = check_settings(TrainConfig, settings(out, model, data__condition=condition, **changes))
    out.mkdir(parents=True)
    save_settings(config, RunFolder(out).config)
    main = tiny.load_main(model)
    torch.manual_seed(seed)
    side = pair_spec("sd-controlnet").make_side(main, SideOptions(conditions=len(config.data.conditions)))
    tiny.randomise_zero_modules(side.module, seed=seed)
    side.module.controlnet_cond_embedding.conv_out.weight.data.mul_(300)
    side.save(RunFolder(out).side_network)
    return out
