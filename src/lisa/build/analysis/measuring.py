"""What is measured of one side network at one noise level: probes, sensitivity, similarity, and maps for pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lisa.analyse.readings import FACTORS, TARGETS, Reading
from lisa.analyse.ridge import Probe, Sums, fit_probes
from lisa.analyse.sensitivity import distances
from lisa.analyse.similarity import gram
from lisa.analyse.words import bag, vocabulary
from lisa.build.analysis.features import Encoded, FeatureReader, Features, Level
from lisa.build.analysis.film import film

_POSITIONS = 256  # of a layer, that probes and similarity look at; a fixed choice where it has more
_FOLDS = 4  # of the inner validation

#: Per sample: a probe's squared error, and what there was to explain.
Errors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Readings by layer; and the features (B, C, h, w) of the first samples as they are."""

    readings: dict[str, Reading]
    maps: Features


@dataclass(frozen=True)
class Subjects:
    """What is looked at, at one noise level: samples, and their residuals ``target - prior``, shaped as latents.

    Probes are fitted on ``fit``, training samples; everything else is measured on ``held_out``.
    """

    fit: Encoded
    held_out: Encoded
    fit_residuals: Tensor
    residuals: Tensor


def measure(reader: FeatureReader, subjects: Subjects, level: Level, shown: int) -> Measured:
    """All there is to measure at ``level``.

    Args:
        reader: of the side network.
        subjects: at this level.
        level: of the noise.
        shown: of how many held-out samples the whole features are given back.
    """
    fit, held_out = subjects.fit, subjects.held_out
    words = vocabulary(fit.captions)
    probes = _fit(reader, fit, level, words)
    errors = _test(reader, held_out, level, words, probes)
    scores = _fit_scores(reader, fit, subjects.fit_residuals, level)
    plain = _as_they_are(reader, held_out, subjects.residuals, level, shown, scores)
    blocks = _sensitivity(reader, held_out, level)
    readings = {}
    for layer, found in probes.items():
        every = {**{target: errors[layer, target] for target in found}, "score": plain.errors[layer]}
        readings[layer] = Reading(
            errors={target: every[target][0] for target in TARGETS},
            totals={target: every[target][1] for target in TARGETS},
            penalties={target: probe.penalty for target, probe in {**found, "score": scores[layer]}.items()},
            distances=blocks[layer],
            gram=plain.grams[layer],
        )
    return Measured(readings, plain.maps)


@dataclass(frozen=True)
class _Mixed:
    """One batch for probes: features, and what was put in.

    Condition, picture and caption are of three different samples: what a probe finds came in by that input, and is not
    what the picture tells of its own outlines and its own caption.
    """

    features: Features
    rows: list[int]
    pixels: Tensor  # of the conditions, (B, 3 n, H, W) in 0..1; of clips, as the noise, their frames side by side
    noise: Tensor
    words: np.ndarray


def _mixed(reader: FeatureReader, samples: Encoded, rows: Sequence[int], level: Level, words: Sequence[str]) -> _Mixed:
    pictures, captions = ([(row + shift) % len(samples) for row in rows] for shift in (1, 2))
    noise = reader.noise(samples, rows, level)
    inputs = reader.inputs(samples, level, condition=rows, picture=pictures, noise=noise, caption=captions)
    pixels = torch.from_numpy(np.stack([samples.pictures[row] for row in rows])).permute(0, 3, 1, 2).float() / 255
    given = bag([samples.captions[row] for row in captions], words)
    return _Mixed(reader.read(inputs), list(rows), pixels, film(noise), given)


def _per_position(feature: np.ndarray, batch: _Mixed, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, P, C) of the feature, and the condition's pixels and the noise there, (B, P, 3 n + C of the latent)."""
    return _at_cells(feature, [batch.pixels, batch.noise], seed)


def _at_cells(feature: np.ndarray, targets: Sequence[Tensor], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, P, C) of a feature at chosen positions, and targets averaged over each cell there, (B, P, their channels)."""
    grid = feature.shape[-2:]
    pooled = torch.cat([adaptive_avg_pool2d(each, grid) for each in targets], dim=1).numpy()
    chosen = _positions(grid, seed)
    return _flat(feature)[:, chosen], _flat(pooled)[:, chosen]


def _flat(maps: np.ndarray) -> np.ndarray:
    """(B, C, h, w) to (B, h w, C)."""
    return maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2)


def _positions(grid: tuple[int, ...], seed: int) -> np.ndarray:
    count = grid[0] * grid[1]
    return np.sort(np.random.default_rng([seed, count]).permutation(count)[:_POSITIONS])


def _batches(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _fit(reader: FeatureReader, samples: Encoded, level: Level, words: Sequence[str]) -> dict[str, dict[str, Probe]]:
    """By layer and target."""
    cells: dict[str, list[Sums | None]] = {}
    pooled: dict[str, list[Sums | None]] = {}
    for rows in _batches(len(samples), reader.batch):
        batch = _mixed(reader, samples, rows, level, words)
        folds = np.array(batch.rows) % _FOLDS
        for layer, feature in batch.features.items():
            x, y = _per_position(feature, batch, reader.draws.seed)
            for fold in np.unique(folds):
                mine = folds == fold
                _add(cells, layer, fold, Sums.of(x[mine], y[mine]))
                _add(pooled, layer, fold, Sums.of(feature[mine].mean((2, 3))[:, None], batch.words[mine][:, None]))
    pixels = samples.pictures[0].shape[-1]
    groups = {"condition": slice(0, pixels), "noise": slice(pixels, None)}
    everything = {"caption": slice(None)}
    return {
        layer: {**fit_probes(_full(cells[layer]), groups), **fit_probes(_full(pooled[layer]), everything)}
        for layer in cells
    }


def _add(sums: dict[str, list[Sums | None]], layer: str, fold: int, more: Sums) -> None:
    folds = sums.setdefault(layer, [None] * _FOLDS)
    before = folds[fold]
    folds[fold] = more if before is None else before + more


def _full(folds: list[Sums | None]) -> list[Sums]:
    return [fold for fold in folds if fold is not None]


def _test(
    reader: FeatureReader,
    samples: Encoded,
    level: Level,
    words: Sequence[str],
    probes: dict[str, dict[str, Probe]],
) -> dict[tuple[str, str], Errors]:
    """By (layer, target): each held-out sample's squared error, and what there is to explain."""
    found: dict[tuple[str, str], list[Errors]] = {}
    pixels = samples.pictures[0].shape[-1]
    for rows in _batches(len(samples), reader.batch):
        batch = _mixed(reader, samples, rows, level, words)
        for layer, feature in batch.features.items():
            x, y = _per_position(feature, batch, reader.draws.seed)
            pairs = {
                "condition": (x, y[..., :pixels]),
                "noise": (x, y[..., pixels:]),
                "caption": (feature.mean((2, 3))[:, None], batch.words[:, None]),
            }
            for target, (inputs, outputs) in pairs.items():
                found.setdefault((layer, target), []).append(probes[layer][target].errors(inputs, outputs))
    return {key: _joined(parts) for key, parts in found.items()}


def _joined(parts: Sequence[Errors]) -> Errors:
    return np.concatenate([errors for errors, _ in parts]), np.concatenate([totals for _, totals in parts])


def _sensitivity(reader: FeatureReader, samples: Encoded, level: Level) -> dict[str, dict[str, np.ndarray]]:
    """By layer, the distances of every block: two samples, all combinations of what they are made of."""
    combinations = np.array(list(itertools.product((0, 1), repeat=len(FACTORS))))
    found: dict[str, list[dict[str, float]]] = {}
    for first in range(0, len(samples) - 1, 2):
        condition, picture, noise, caption = (first + combinations).T.tolist()
        inputs = reader.inputs(
            samples,
            level,
            condition=condition,
            picture=picture,
            noise=reader.noise(samples, noise, level),
            caption=caption,
        )
        for layer, feature in reader.read(inputs).items():
            block = feature.reshape(*(2,) * len(FACTORS), -1)
            found.setdefault(layer, []).append(distances(block, FACTORS))
    return {
        layer: {name: np.array([block[name] for block in blocks]) for name in blocks[0]}
        for layer, blocks in found.items()
    }


def _fit_scores(reader: FeatureReader, samples: Encoded, residuals: Tensor, level: Level) -> dict[str, Probe]:
    """By layer, the probe for the likelihood score, from samples as they are."""
    cells: dict[str, list[Sums | None]] = {}
    for rows in _batches(len(samples), reader.batch):
        folds = np.array(rows) % _FOLDS
        for layer, feature in reader.read(reader.as_they_are(samples, rows, level)).items():
            x, y = _at_cells(feature, [film(residuals[list(rows)])], reader.draws.seed)
            for fold in np.unique(folds):
                mine = folds == fold
                _add(cells, layer, fold, Sums.of(x[mine], y[mine]))
    return {layer: fit_probes(_full(folds), {"score": slice(None)})["score"] for layer, folds in cells.items()}


@dataclass(frozen=True)
class _Plain:
    """Of held-out samples as they are, by layer: the score's errors, inner products, and the first ones' features."""

    errors: dict[str, Errors]
    grams: dict[str, np.ndarray]
    maps: Features


def _as_they_are(
    reader: FeatureReader, samples: Encoded, residuals: Tensor, level: Level, shown: int, probes: dict[str, Probe]
) -> _Plain:
    errors: dict[str, list[Errors]] = {}
    flat: dict[str, list[np.ndarray]] = {}
    maps: dict[str, list[np.ndarray]] = {}
    for rows in _batches(len(samples), reader.batch):
        for layer, feature in reader.read(reader.as_they_are(samples, rows, level)).items():
            x, y = _at_cells(feature, [film(residuals[list(rows)])], reader.draws.seed)
            errors.setdefault(layer, []).append(probes[layer].errors(x, y))
            flat.setdefault(layer, []).append(x.reshape(len(rows), -1))
            maps.setdefault(layer, []).append(feature[: max(shown - rows.start, 0)])
    return _Plain(
        {layer: _joined(parts) for layer, parts in errors.items()},
        {layer: gram(np.concatenate(batches)) for layer, batches in flat.items()},
        {layer: np.concatenate(batches) for layer, batches in maps.items()},
    )
