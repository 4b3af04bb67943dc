"""Run folders with curves that were made up, so that every figure of a comparison is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Function = Callable[[np.ndarray], np.ndarray]

SETTINGS: dict[str, Any] = {
    "out": "x",
    "seed": 0,
    "model": {"path": "tiny-sd", "pair": "sd-controlnet", "log_sigma": None},
    "data": {"source": "scenes", "condition": "edges", "held_out": 64, "cache_dir": "x"},
    "align": {"enabled": True, "weight": 0.2},
    "train": {"steps": 1000, "lr_schedule": "constant_with_warmup"},
    "log": {"held_out_every": 20, "held_out_levels": 2, "fidelity_every": 1000, "fidelity_samples": 16},
    "sample": {"steps": 20},
}


def saturating(half: float, top: float = 0.4) -> Function:
    """A curve that is at half of ``top`` at the step ``half``, and within 0.1% of it ten times later."""
    return lambda step: top * (1 - 2 ** (-step / half))


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def make_run(
    out: Path,
    arm: str,
    seed: int,
    gain: Function,
    *,
    seconds_per_step: float = 0.1,
    steps: int = 1000,
    every: int = 20,
    until: int | None = None,
    fidelity: float = 0.8,
    judged: Sequence[int] = (),
    diverged: bool = False,
    settings: dict[str, Any] | None = None,
    gap: Function | None = None,
    base: dict[str, Any] | None = None,
) -> Path:
    """``OUT/<arm>/seed-<n>``; ``until``: the step at which it was interrupted, or diverged; ``base``: all settings."""
    path = out / arm / f"seed-{seed}"
    (path / "samples").mkdir(parents=True, exist_ok=True)
    raw = json.loads(json.dumps(SETTINGS if base is None else base))
    raw |= {"out": str(path), "seed": seed}
    if base is None:
        raw["train"]["steps"], raw["align"]["enabled"] = steps, arm != "plain"
        raw["log"]["held_out_every"] = every
    for name, value in (settings or {}).items():
        section, _, key = name.rpartition(".")
        (raw[section] if section else raw)[key] = value
    (path / "config.yaml").write_text(yaml.safe_dump(raw))
    end = steps if until is None else until
    at = np.arange(0, end + 1, every)
    curve, gaps = gain(at.astype(float)), (gap or gain)(at.astype(float))
    events: list[dict[str, Any]] = [{"step": 0, "kind": "started"}]
    for step, value, apart in zip(at.tolist(), curve.tolist(), gaps.tolist(), strict=True):
        if step:
            events.append({"step": step, "kind": "train", "loss": 1.0, "seconds": step * seconds_per_step})
        events.append({"step": step, "kind": "held_out", "control_gain": interval(value), "gap": interval(apart)})
        if step in judged:
            events.append({"step": step, "kind": "fidelity", "edges": interval(value + 0.1), "seconds": 1.0})
    if until is not None:
        events.append({"step": until, "kind": "stopped", "reason": "not finite" if diverged else "SIGTERM"})
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if until is None:
        judgement = {
            "with": interval(fidelity),
            "without": interval(0.1),
            "gain": interval(fidelity - 0.1),
            "metric": "edge_f1",
            "unit": "",
            "protocol": "scenes/edges",
            "samples": 48,
            "metrics": {
                name: {"with": interval(value), "without": interval(0.9), "unit": unit, "higher_is_better": higher}
                for name, value, unit, higher in (("edge_f1", fidelity, "", True), ("flicker", 0.25, "F1", False))
            },
        }
        summary = {
            "steps": steps,
            "control_gain": interval(float(curve[-1])),
            "condition_gap": interval(float(gaps[-1])),
            "decoder_r2": interval(0.05) if arm != "plain" else {"value": None, "low": None, "high": None},
            "fidelities": {"edges": judgement},
            "peak_rss_mb": 900.0 + (arm != "plain") * 100,
            "versions": {"lisa": "0.1.0"},
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return path
