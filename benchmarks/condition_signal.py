"""What of a condition reaches a new side network: how much differs between conditions, before each of its layers.

python benchmarks/condition_signal.py --out benchmarks/results/NAME.json

Standard deviation between 32 scenes' conditions at each place (root of the mean variance over places), in the networks
as diffusers starts them and with ``side.condition_init=lsuv``; of tiny-sd before each convolution of the condition
embedding, of tiny-sd3 before and after its one layer. Seconds on a CPU; no training."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lisa
from lisa.build.parts import build_pair
from lisa.cli.common import quiet_libraries
from lisa.common.files import write_json
from lisa.data.sources import ScenesSource
from lisa.pairs import Pair
from lisa.sides.embedding import condition_embedding, init_condition_embedding, variation
from lisa.train.config import TrainConfig
from lisa.train.quickstart import QUICKSTART_MODELS
from lisa.train.settings import check_settings

COUNT, SIZE = 32, 64


def spread(values: Tensor) -> float:
    """Standard deviation between samples (N, ...), at each place."""
    return float(variation(values).sqrt())


def conditions(name: str) -> Tensor:
    """(N, 3, H, W) in 0..1."""
    source = ScenesSource(name, seed=1, count=COUNT, size=SIZE)
    pictures = [torch.from_numpy(source[i].condition.copy()) for i in range(COUNT)]
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def before_layers(embedding: nn.Module, given: Tensor) -> list[float]:
    """The spread of what each convolution (or the one layer) is given, and of what comes out at the end."""
    found: list[float] = []
    layers = [m for m in embedding.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: found.append(spread(args[0]))) for layer in layers]
    out = embedding(given)
    for hook in hooks:
        hook.remove()
    return [float(f"{value:.2g}") for value in (*found, spread(out))]


def new_pair(model: str) -> Pair:
    """An embedded model with a new side network."""
    chosen = {"path": model, "pair": QUICKSTART_MODELS[model]["model"]["pair"]}
    torch.manual_seed(0)
    return build_pair(check_settings(TrainConfig, {"model": chosen}))


@torch.no_grad()
def measure(model: str, name: str, start: str) -> dict[str, Any]:
    """One model, condition and start."""
    pair = new_pair(model)
    given = conditions(name)
    shared = None
    if pair.side.reads == "latents":
        given = pair.main.encode_condition(given)
        shared = float(pair.main.encode_condition(torch.zeros(1, 3, SIZE, SIZE)).square().mean().sqrt())
    embedding = condition_embedding(pair.side.module)
    if start == "lsuv":
        torch.manual_seed(0)
        init_condition_embedding(pair.side.module, embedding, given.split(8))
    row = {"model": model, "condition": name, "start": start, "between_conditions": before_layers(embedding, given)}
    return row if shared is None else {**row, "shared_by_all (black)": float(f"{shared:.2g}")}


def noisy_latent() -> float:
    """The spread of what the result is added to in tiny-sd's ControlNet: its embedding of pure noise."""
    pair = new_pair("tiny-sd")
    with torch.no_grad():
        return float(f"{spread(pair.side.module.conv_in(torch.randn(COUNT, 4, SIZE // 4, SIZE // 4))):.2g}")


def main() -> None:
    """Measure all, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    names = ("skeleton", "edges", "segmentation", "lowres")
    result = {
        "what": "standard deviation between 32 conditions before each layer of the condition embedding, and behind it",
        "date": date.today().isoformat(),
        "tiny-sd, embedding of noise": noisy_latent(),
        "rows": [measure(m, name, s) for m in ("tiny-sd", "tiny-sd3") for name in names for s in ("default", "lsuv")],
        "versions": {"lisa": lisa.__version__, "torch": torch.__version__},
    }
    write_json(options.out, result)


if __name__ == "__main__":
    main()
