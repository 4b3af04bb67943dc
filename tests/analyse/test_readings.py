"""Figures from readings: their values, pairing, and means over levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lisa.analyse.readings import FACTORS, TARGETS, Reading, differences, figures
from lisa.analyse.report import markdown, show, verdict
from lisa.analyse.results import between_layers, tabulate
from lisa.common.intervals import Interval

RNG = np.random.default_rng(0)
NAMES = ("all", *FACTORS, *[f"not {name}" for name in FACTORS])


def reading(error=0.5, owed=0.75, scale=1.0):
    """R2 of ``1 - error`` for every target and ``owed`` to the condition, in samples of very different size."""
    sizes = scale * RNG.uniform(0.1, 10, 16)
    blocks = sizes[:8] * RNG.uniform(0.5, 2, 8)
    shares = {"all": 1, "condition": owed, "not condition": 1 - owed}
    return Reading(
        errors=dict.fromkeys(TARGETS, error * sizes),
        totals=dict.fromkeys(TARGETS, sizes),
        penalties=dict.fromkeys(TARGETS, 1.0),
        distances={name: shares.get(name, 0.25) * blocks for name in NAMES},
        gram=np.cov(RNG.normal(size=(16, 30))),
    )


def test_figures_are_ratios_of_sums():
    found = figures([reading(error=0.4, owed=0.7)], seed=0)
    assert found["r2"]["condition"].value == pytest.approx(0.6)
    assert found["disentanglement"].value == found["first"]["condition"].value == pytest.approx(0.7)
    assert found["total"]["condition"].value == pytest.approx(0.7)
    assert found["total"]["noise"].value == pytest.approx(0.25) and found["first"]["noise"].value == pytest.approx(0.75)


def test_means_over_levels_weigh_every_level_alike():
    levels = [reading(0.2, 0.9, scale=1000.0), reading(0.6, 0.5)]
    found = figures(levels, seed=0)
    assert found["r2"]["noise"].value == pytest.approx(0.6) and found["disentanglement"].value == pytest.approx(0.7)


def test_differences_are_paired():
    """Samples vary much, both runs alike: the difference is sure where each figure is not."""
    ours = reading()
    varied = replace(ours, errors={target: ours.totals[target] * RNG.uniform(0, 1, 16) for target in TARGETS})
    theirs = replace(varied, errors={t: e + 0.1 * ours.totals[t] for t, e in varied.errors.items()})
    alone, paired = figures([varied], 0)["r2"]["score"], differences([varied], [theirs], 0)["r2"]["score"]
    assert paired.value == pytest.approx(0.1)
    assert paired.high - paired.low < 1e-9 < 0.1 < alone.high - alone.low
    same = differences([ours], [ours], 0)
    assert [same["disentanglement"].value, same["disentanglement"].low, same["total"]["noise"].high] == [0, 0, 0]


def test_nothing_to_explain_is_not_known():
    nothing = replace(reading(), totals=dict.fromkeys(TARGETS, np.zeros(16)))
    assert np.isnan(figures([nothing, reading()], 0)["r2"]["caption"].value)
    assert show(figures([nothing], 0)["r2"]["caption"]) == "-"


def test_tables_and_verdict():
    ours, theirs = {"down.0": [reading(owed=0.8)] * 2}, {"down.0": [reading(owed=0.6)] * 2}
    found = tabulate(ours, theirs, [250.0, 750.0], seed=0)
    assert [row["level"] for row in found["by_level"]] == [250.0, 750.0]
    assert found["by_layer"][0]["difference"]["disentanglement"].value == pytest.approx(0.2)
    assert found["overall"]["run"]["disentanglement"].value == pytest.approx(0.8)
    itself = between_layers(ours, None)
    assert itself == [[pytest.approx(1)]] and between_layers(ours, theirs)[0][0] < 0.9
    result = {
        "run": "a",
        "against": "b",
        "model": "m",
        "pair": "p",
        "condition": "edges",
        "seed": 0,
        "samples": 16,
        "aligned": {"run": ["down.0"], "against": []},
        "levels": [250.0, 750.0],
        "pairs": 8,
        "fit_samples": 32,
        "only_in_one_run": [],
        "decoded": {"run": {"left_out": "no decoder"}},
        "pictures": {"x.png": "words"},
        "definitions": {"cka": "likeness"},
        "noise_draws": 16,
        **found,
    }
    assert verdict(result).startswith("a is more disentangled than b: +0.200 [")
    text = markdown({**result, "verdict": verdict(result)})
    for part in ("No decoded score of a: no decoder.", "![words](x.png)", "| down.0 | 250 |", "+0.200", "likeness"):
        assert part in text
    result["overall"]["difference"]["disentanglement"] = Interval(0.1, -0.1, 0.3)
    assert "neither more nor less" in verdict(result)
