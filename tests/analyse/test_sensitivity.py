"""Sobol indices of functions whose indices are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lisa.analyse.sensitivity import distances
from lisa.common.errors import LisaError

FACTORS = ("condition", "picture", "noise")


def expected(function):
    """The mean of every distance over all equally likely blocks, where each input is -1 or 1: exact."""
    ends = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    blocks = []
    for choice in itertools.product(ends, repeat=len(FACTORS)):
        block = [function(*values) for values in itertools.product(*choice)]
        blocks.append(distances(np.array(block, np.float32).reshape(*(2,) * len(FACTORS), -1), FACTORS))
    return {name: np.mean([block[name] for block in blocks]) for name in blocks[0]}


def indices(function):
    mean = expected(function)
    first = {name: 1 - mean[f"not {name}"] / mean["all"] for name in FACTORS}
    total = {name: mean[name] / mean["all"] for name in FACTORS}
    return mean["all"], first, total


def test_additive():
    """Two numbers: variances 4 + 1 and 9, of the condition 4 and of the picture 9."""
    variance, first, total = indices(lambda c, p, n: [2 * c + n + 100, 3 * p])
    assert variance == pytest.approx(14)
    assert first == pytest.approx({"condition": 4 / 14, "picture": 9 / 14, "noise": 1 / 14})
    assert total == pytest.approx(first)


def test_interactions_count_in_total_only():
    """c + 2 c p + 2 c p n: variances 1, 4 and 4."""
    variance, first, total = indices(lambda c, p, n: [c + 2 * c * p + 2 * c * p * n])
    assert variance == pytest.approx(9)
    assert first == pytest.approx({"condition": 1 / 9, "picture": 0, "noise": 0}, abs=1e-12)
    assert total == pytest.approx({"condition": 1, "picture": 8 / 9, "noise": 4 / 9})


def test_rotations_change_nothing():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    plain = expected(lambda c, p, n: [c, c * n, 2 * p])
    turned = expected(lambda c, p, n: rotation @ np.array([c, c * n, 2 * p]))
    assert turned == pytest.approx(plain)


def test_a_block_has_two_values_per_factor():
    with pytest.raises(LisaError, match="two values"):
        distances(np.zeros((2, 3, 2, 5)), FACTORS)
