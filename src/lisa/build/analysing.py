"""``lisa analyse``: what the side features of a run encode, alone or against those of another run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lisa
from lisa.analyse.charts import draw_layers, draw_similarity
from lisa.analyse.readings import DEFINITIONS, FACTORS, Reading
from lisa.analyse.report import markdown, verdict
from lisa.analyse.results import between_layers, tabulate
from lisa.build.analysis.decoded import DRAWS, Scores, decoded_scores, find_decoder, load_decoder
from lisa.build.analysis.features import Encoded, FeatureReader, Features, Level, encode, noise_levels
from lisa.build.analysis.measuring import Subjects, measure
from lisa.build.analysis.pictures import draw_maps, draw_scores
from lisa.build.analysis.setup import (
    RESULT,
    Run,
    check_comparable,
    check_folder,
    choose_samples,
    load_main,
    load_pair,
    open_run,
    own_device,
)
from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, read_json, write_json, write_text
from lisa.pairs import pair_spec
from lisa.processes.draws import Draws
from lisa.sides.base import Layer
from lisa.train.config import TrainConfig

MAX_LEVELS = 20
_SHOWN = 6  # samples in pictures

Say = Callable[[str], Any]


@dataclass(frozen=True)
class _Analysed:
    """What was measured of one run: readings by layer; by level, features and decoded scores for pictures."""

    layers: list[Layer]
    readings: dict[str, list[Reading]]
    maps: list[Features]
    scores: list[Scores] | None
    note: str


def analyse(
    run: str | Path,
    *,
    against: str | Path | None = None,
    samples: int | None = None,
    levels: int = 3,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Say | None = None,
) -> dict[str, Any]:
    """Tell what the side features of a run encode, layer by layer and by noise level; see ``docs/analysis.md``.

    Args:
        run: a finished run folder.
        against: another, of the same data and main network; every figure also as a paired difference.
        samples: held-out samples; default: all, at most 64. Probes are fitted on twice as many training samples.
        levels: noise levels, spread evenly.
        seed: of noise, of the training samples that are chosen, and of the intervals.
        out: folder to write ``analysis.json``, ``report.md`` and pictures to; default: ``RUN/analysis``.
        overwrite: replace an earlier analysis there.
        progress: is told what is being done.

    Returns:
        What ``analysis.json`` holds (intervals as ``{"value", "low", "high"}``), and ``out``, where it lies.

    Raises:
        LisaError: no run, no side network yet, runs that cannot be compared, too few samples, or a folder in the way.
    """
    started = time.monotonic()
    say = progress if progress is not None else lambda line: None
    if not 1 <= levels <= MAX_LEVELS:
        raise LisaError(f"--levels is {levels}", f"Give 1 to {MAX_LEVELS}")
    chosen = [open_run("run", run)] + ([] if against is None else [open_run("against", against)])
    folder = Path(out) if out is not None else Path(run) / "analysis"
    check_folder(folder, overwrite)
    if len(chosen) > 1:
        check_comparable(*chosen)
    config = chosen[0].config
    fit, held_out, transform = choose_samples(config, samples, seed)
    device, batch, draws = own_device(), config.sample.batch_size, Draws(seed)
    main = load_main(config, device)
    pair = load_pair(chosen[0], main, device)
    say(f"encoding {len(held_out)} held-out and {len(fit)} training samples")
    encoded = [
        encode(name, each, transform, pair, draws, batch, device)
        for name, each in (("fit", fit), ("held_out", held_out))
    ]
    at = noise_levels(main.process, levels)
    reader = FeatureReader(pair, draws, batch, device)
    subjects = [Subjects(*encoded, *[reader.residuals(each, level) for each in encoded]) for level in at]
    found = []
    for each in chosen:
        mine = pair if each is chosen[0] else load_pair(each, main, device)
        found.append(_analyse(each, FeatureReader(mine, draws, batch, device), subjects, at, say))
    result = _result(chosen, found, encoded, at, seed)
    result["verdict"] = verdict(result)
    say("writing pictures and report")
    with atomic_dir(folder) as target:
        result["pictures"] = _draw(target, chosen, found, encoded[1], at, result)
        result["seconds"] = round(time.monotonic() - started, 1)
        write_json(target / RESULT, result)
        write_text(target / "report.md", markdown(result))
    return {**read_json(folder / RESULT), "out": str(folder)}


def _analyse(
    run: Run, reader: FeatureReader, subjects: Sequence[Subjects], levels: Sequence[Level], say: Say
) -> _Analysed:
    measured = []
    for number, (level, mine) in enumerate(zip(levels, subjects, strict=True), start=1):
        say(f"{run.path}: noise level {number} of {len(levels)}")
        measured.append(measure(reader, mine, level, _SHOWN))
    held_out = subjects[0].held_out
    decoder, note = find_decoder(run.path, run.config)
    scores = None
    if decoder is not None:
        say(f"{run.path}: decoded scores")
        aligner = load_decoder(run.config, reader, decoder)
        scores = [decoded_scores(aligner, reader, held_out, level, min(_SHOWN, len(held_out))) for level in levels]
        aligner.remove()
    readings = {layer: [each.readings[layer] for each in measured] for layer in measured[0].readings}
    return _Analysed(reader.pair.side.layers(), readings, [each.maps for each in measured], scores, note)


def _result(
    runs: Sequence[Run], found: Sequence[_Analysed], encoded: Sequence[Encoded], levels: Sequence[Level], seed: int
) -> dict[str, Any]:
    ours, times = found[0], [level.time for level in levels]
    common = [layer for layer in ours.readings if all(layer in each.readings for each in found)]
    readings = [{layer: each.readings[layer] for layer in common} for each in found]
    theirs = readings[1] if len(readings) > 1 else None
    config = runs[0].config
    return {
        "run": str(runs[0].path),
        "against": str(runs[1].path) if len(runs) > 1 else None,
        "model": config.model.path,
        "pair": config.model.pair,
        "condition": config.data.condition,
        "aligned": {run.role: _aligned(run.config) for run in runs},
        "levels": times,
        "samples": len(encoded[1]),
        "pairs": len(encoded[1]) // 2,
        "fit_samples": len(encoded[0]),
        "factors": list(FACTORS),
        "noise_draws": DRAWS,
        "seed": seed,
        "layers": [vars(layer) for layer in ours.layers if layer.name in common],
        "only_in_one_run": sorted({layer for each in found for layer in each.readings} - set(common)),
        "definitions": DEFINITIONS,
        **tabulate(readings[0], theirs, times, seed),
        "between_layers": between_layers(readings[0], theirs),
        "decoded": {run.role: _agreement(each, times, seed) for run, each in zip(runs, found, strict=True)},
        "versions": {"lisa": lisa.__version__, "torch": torch.__version__},
    }


def _aligned(config: TrainConfig) -> list[str]:
    """The layers that were aligned in training."""
    layers = config.align.layer or pair_spec(config.model.pair).default_layer
    return ([layers] if isinstance(layers, str) else list(layers)) if config.align.active else []


def _agreement(found: _Analysed, times: Sequence[float], seed: int) -> dict[str, Any]:
    if found.scores is None:
        return {"left_out": found.note}
    return {
        "by_level": [
            {"level": time, **scores.agreement(seed)} for time, scores in zip(times, found.scores, strict=True)
        ]
    }


def _draw(
    folder: Path,
    runs: Sequence[Run],
    found: Sequence[_Analysed],
    held_out: Encoded,
    levels: Sequence[Level],
    result: Mapping[str, Any],
) -> dict[str, str]:
    """Write all pictures; returns what each shows by its file's name."""
    names = {run.role: str(run.path) for run in runs}
    layers = [layer["name"] for layer in result["layers"]]
    draw_layers(folder / "layers.png", result["by_layer"], names)
    draw_similarity(folder / "similarity.png", result["between_layers"], layers, names)
    pictures = {
        "layers.png": "the figures over the layers, means over the noise levels, with 95% intervals",
        "similarity.png": "linear CKA between layers, mean over the noise levels",
    }
    for run, each in zip(runs, found, strict=True):
        for place, level in enumerate(levels):
            label = f"{run.role}-t{level.time:04.0f}.png"
            kept = draw_maps(folder / f"features-{label}", each.maps[place], held_out, result["aligned"][run.role])
            pictures[f"features-{label}"] = (
                f"{run.path}: first three principal components of {', '.join(kept)} as red, green and blue, t = "
                f"{level.time:.0f}; one basis per column"
            )
            if each.scores is not None:
                draw_scores(folder / f"scores-{label}", each.scores[place], held_out)
                pictures[f"scores-{label}"] = (
                    f"{run.path}: likelihood score at t = {level.time:.0f}, true residual beside decoded, of one noise "
                    f"and averaged over {DRAWS}; one basis and scale, grey is zero"
                )
    return pictures
