"""What a LISA step costs beside a plain one, with the prior shared and not, and a plain one in bfloat16; interleaved in
one run, as ratios. Of tiny-sd and tiny-sd3.

python benchmarks/step_time.py --model tiny-sd --batch 16 --rounds 15 --out benchmarks/results/NAME.json"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import lisa
from lisa.build.parts import build_alignment, build_optimizer, build_pair
from lisa.core.meter import LearningMeter
from lisa.processes.draws import Draws
from lisa.train.config import TrainConfig
from lisa.train.dataset import Batch
from lisa.train.precision import attention
from lisa.train.quickstart import QUICKSTART_MODELS
from lisa.train.settings import check_settings
from lisa.train.step import ControlStep

ARMS = {
    "plain": {"align": {"enabled": False}},
    "lisa": {"align": {"enabled": True}},
    "lisa, prior not shared": {"align": {"enabled": True}, "model": {"share_prior": False}},
    "plain, bf16": {"align": {"enabled": False}, "train": {"mixed_precision": "bf16"}},
}
#: The same with torch's fused attention, which on a CPU the trainer does not use in bfloat16.
FUSED = "plain, bf16, fused attention"


def make_arm(overlay: dict, model: str, batch: int, size: int, device: torch.device, fused: bool = False):
    """A function that runs one whole optimiser step."""
    chosen = {"path": model, "pair": QUICKSTART_MODELS[model]["model"]["pair"], **overlay.get("model", {})}
    raw = {"model": chosen, "align": overlay["align"], "data": {"size": size}}
    config = check_settings(TrainConfig, {**raw, "train": {"batch_size": batch, **overlay.get("train", {})}})
    bf16 = config.train.mixed_precision == "bf16"
    torch.manual_seed(0)
    pair = build_pair(config)
    aligner, schedule = build_alignment(config, pair)
    pair.main.to(device)  # the frozen network as it is stored: in 16 bits beside bf16
    pair.side.module.to(device).train()
    optimizer, clip = build_optimizer(config, pair, aligner, device)
    step = ControlStep(pair, aligner, aligner, schedule, LearningMeter(), Draws(0), 0.1)
    latent = size // pair.main.latent_factor
    context = {name: value.to(device) for name, value in pair.main.encode_text(["a red circle"] * batch).items()}
    empty = {name: value.to(device) for name, value in pair.main.encode_text([""]).items()}
    moments = torch.randn(batch, 2 * pair.main.latent_channels, latent, latent, device=device).abs()
    condition = torch.rand(batch, 3, size, size, device=device)
    if pair.side.reads == "latents":
        condition = pair.main.encode_condition(condition)

    def run(number: int) -> None:
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            attention(device, bf16 and not fused),
        ):
            loss = step(Batch(list(range(batch)), moments, condition, context, empty), number).loss
        loss.backward()
        for group in clip.values():
            torch.nn.utils.clip_grad_norm_(group.parameters, group.max_norm)
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    """Time the arms in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-sd", choices=["tiny-sd", "tiny-sd3"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = (options.model, options.batch, options.size, device)
    runs = {name: make_arm(arm, *about) for name, arm in ARMS.items()}
    runs[FUSED] = make_arm(ARMS["plain, bf16"], *about, fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run(number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))
        for name, times in seconds.items()
    }
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "model": options.model,
        "batch": options.batch,
        "size": options.size,
        "rounds": options.rounds,
        "seconds_per_step": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "ratio_to_plain": {name: round(value, 3) for name, value in ratios.items()},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {"lisa": lisa.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
