"""Two side networks trained apart, used together, against each alone: every step through the command line.

    python benchmarks/compositional.py --out benchmarks/results/DATE-compositional-tiny-sd-cpu.json

Segmentation tells outlines and kinds exactly and no colours (two circles look alike); low resolution tells colours and
shading, and outlines only to a block of 8 pixels. Both networks are trained with the quickstart's settings. Some of
what they know is the same (where things are), and a plain sum counts it twice, so weights below 1 are tried too. The
weights, of the pair and of each network alone, are chosen on the first held-out scenes; the figures are of the others.
Started again, it goes on where it was: trainings resume, pictures that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import lisa
from lisa.build.parts import open_data
from lisa.common.files import write_json
from lisa.common.intervals import bootstrap_mean
from lisa.data.images import load_rgb
from lisa.evaluate.runner import fidelity_gain
from lisa.sample.grids import labelled_grid, save_png
from lisa.train.config import TrainConfig
from lisa.train.quickstart import quickstart_config
from lisa.train.settings import load_settings, save_settings

ALONE = (0.7, 1.0, 1.3, 1.7, 2.2, 2.8)
TOGETHER = ((0.5, 0.5), (0.8, 0.8), (1.0, 1.0), (1.3, 1.3), (1.7, 1.7), (1.0, 0.5), (0.5, 1.0), (1.3, 0.8), (0.8, 1.3))


def say(*arguments: Any) -> None:
    """Run one command of ours and stop where it fails."""
    command = [sys.executable, "-m", "lisa", *map(str, arguments)]
    print("lisa", *command[3:], flush=True)
    subprocess.run(command, check=True)


def train(run: Path, condition: str | list[str], options: argparse.Namespace) -> None:
    """The quickstart's training for one condition, with more held-out scenes; once."""
    if (run / "summary.json").is_file():
        return
    if (run / "config.yaml").is_file():
        say("train", run / "config.yaml", "--resume")
        return
    config = quickstart_config(out=run, steps=options.steps, seed=options.seed, aligned=True)
    data = config.data.model_dump() | {"condition": condition, "held_out": options.held_out}
    data["scenes"] += options.held_out - config.data.held_out
    draft = run.with_suffix(".yaml")
    draft.parent.mkdir(parents=True, exist_ok=True)
    save_settings(config.model_copy(update={"data": type(config.data)(**data)}), draft)
    say("train", draft)


def judged(folder: Path, runs: list[Path], sides: list[str], count: int, options: argparse.Namespace) -> list[Any]:
    """Pictures of some side networks together, judged for the condition of each run: results with every picture's."""
    named = [part for side in sides for part in ("--side", side)]
    say("generate", *named, "--count", count, "--steps", options.sampling, "--out", folder)
    results = []
    for run in runs:
        out = folder / f"{run.name}-{count}.json"
        say("evaluate", folder, "--run", run, "--count", count, "--out", out)
        results.append(json.loads(out.read_text()))
    return results


def without(result: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """A result on the pictures that chose no weight."""
    kept = {key: scores for key, scores in result["per_image"].items() if key not in keys}
    fidelity = bootstrap_mean([scores["fidelity"] for scores in kept.values()]).to_json()
    return {**result, "per_image": kept, "samples": len(kept), "fidelity": dict(fidelity)}


def draw(runs: list[Path], folders: dict[str, Path], keys: list[str], path: Path) -> None:
    """A row per scene: its conditions, the pictures of every arm, and the scene itself."""
    rows: dict[str, list[Any]] = {key: [] for key in keys}
    for run in runs:
        held_out = open_data(load_settings(TrainConfig, run / "config.yaml").data, 0).held_out
        samples = {sample.key: sample for sample in held_out}
        for key in keys:
            rows[key].append(samples[key].condition)
    for key in keys:
        rows[key] += [load_rgb(folder / f"{key}.png") for folder in folders.values()] + [samples[key].image]
    titles = [run.name for run in runs] + [name if name == "together" else f"{name} alone" for name in folders]
    save_png(labelled_grid(list(rows.values()), [*titles, "ground truth"]), path)


def main() -> None:
    """Train, choose weights, compare, write one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", nargs=2, default=["segmentation", "lowres"])
    parser.add_argument("--work", type=Path, default=Path("runs/compositional"), help="runs and pictures")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--sampling", type=int, default=20, help="sampling steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument(
        "--choose-on", type=int, default=64, help="the first so many held-out scenes choose the weights"
    )
    parser.add_argument("--stacked", action="store_true", help="also train one side network on both, stacked")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, help="draw the first six scenes that chose no weight")
    options = parser.parse_args()

    runs = [options.work / name for name in options.conditions]
    for run, condition in zip(runs, options.conditions, strict=True):
        train(run, condition, options)
    alone = [{f"{weight:g}": [f"{run}={weight:g}"] for weight in ALONE} for run in runs]
    together = {f"{a:g}, {b:g}": [f"{runs[0]}={a:g}", f"{runs[1]}={b:g}"] for a, b in TOGETHER}
    arms = {**dict(zip(options.conditions, alone, strict=True)), "together": together}
    if options.stacked:
        stacked = options.work / "stacked"
        train(stacked, options.conditions, options)
        arms["stacked"] = {"1": [str(stacked)]}

    tried: dict[str, dict[str, list[float]]] = {}
    for arm, choices in arms.items():
        for number, (weights, sides) in enumerate(choices.items()):
            results = judged(options.work / f"{arm}-{number}", runs, sides, options.choose_on, options)
            tried.setdefault(arm, {})[weights] = [result["fidelity"]["value"] for result in results]
            seen = set(results[0]["per_image"])
    best = {arm: choose(arm, values, tried, options.conditions) for arm, values in tried.items()}

    folders = {arm: options.work / f"{arm}-{list(arms[arm]).index(weights)}" for arm, weights in best.items()}
    final = {}
    for arm, weights in best.items():
        results = judged(folders[arm], runs, arms[arm][weights], options.held_out, options)
        final[arm] = [without(result, seen) for result in results]
    if options.picture is not None:
        keys = list(final["together"][0]["per_image"])[:6]
        draw(runs, folders, keys, options.picture)
    row = record(options, final, best, tried)
    print(json.dumps(row, indent=2))
    if options.out is not None:
        write_json(options.out, row)


def choose(arm: str, values: dict[str, list[float]], tried: dict[str, Any], conditions: list[str]) -> str:
    """Weights of an arm: alone, the best for its own condition; else for the worse of both, relative to alone."""
    if arm in conditions:
        own = conditions.index(arm)
        return max(values, key=lambda weights: values[weights][own])
    bases = [max(v[i] for name in conditions for v in tried[name].values()) for i in range(len(conditions))]
    worse = {w: min(v / (base or 1.0) for v, base in zip(of, bases, strict=True)) for w, of in values.items()}
    return max(worse, key=lambda weights: worse[weights])


def record(options: argparse.Namespace, final: dict[str, Any], best: dict[str, str], tried: Any) -> dict[str, Any]:
    """The row: fidelity of every arm to both conditions, and the paired differences of the pair from each alone."""
    gains = {
        f"together over {arm} alone": {
            condition: fidelity_gain(final["together"][i], final[arm][i]).to_json()
            for i, condition in enumerate(options.conditions)
        }
        for arm in options.conditions
    }
    return {
        "what": "two side networks trained apart, used together, against each alone; held-out scenes, 95% intervals",
        "model": "tiny-sd",
        "conditions": options.conditions,
        "steps": options.steps,
        "sampling_steps": options.sampling,
        "seed": options.seed,
        "weights": best,
        "weights_tried": tried,
        "chosen_on": options.choose_on,
        "samples": final["together"][0]["samples"],
        "protocols": [result["protocol"] for result in final["together"]],
        "fidelity_rules": [result["fidelity_rule"] for result in final["together"]],
        "fidelity": {
            arm: {c: result["fidelity"] for c, result in zip(options.conditions, results, strict=True)}
            for arm, results in final.items()
        },
        "gain": gains,
        "together_beats_each_alone_on_both": all(g["low"] > 0 for of in gains.values() for g in of.values()),
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.system()},
        "versions": {"lisa": lisa.__version__, "python": platform.python_version()},
    }


if __name__ == "__main__":
    main()
