"""CKA: what it must not see, what it must, and the unbiased HSIC against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lisa.analyse.similarity import cka, cka_interval, gram, hsic
from lisa.common.errors import LisaError

RNG = np.random.default_rng(0)


def test_rotation_scale_and_shift_change_nothing():
    x = RNG.normal(size=(20, 30))
    rotation = np.linalg.qr(RNG.normal(size=(30, 30)))[0]
    assert cka(gram(x), gram(-3 * x @ rotation + 7)) == pytest.approx(1)


def test_unrelated_features_are_unlike_however_wide():
    """The plain estimate would be near one here: 12 samples, 500 numbers."""
    values = [float(cka(gram(RNG.normal(size=(12, 500))), gram(RNG.normal(size=(12, 500))))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200) < 0.1


def test_shared_part():
    """Half of the directions shared, all alike: CKA is a half."""
    n, shared = 200, RNG.normal(size=(200, 40))
    one, two = (np.concatenate([shared, RNG.normal(size=(n, 40))], 1) for _ in range(2))
    interval = cka_interval(gram(one), gram(two))
    assert interval.value == pytest.approx(0.5, abs=0.07)
    assert interval.low < 0.5 < interval.high and interval.high - interval.low < 0.3


def test_hsic_is_the_u_statistic():
    """The mean over all ordered quadruples of different samples (Song et al. 2012)."""
    one, two = (gram(RNG.normal(size=(6, 3))) for _ in range(2))
    terms = [one[i, j] * (two[i, j] + two[q, r] - 2 * two[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert hsic(one, two) == pytest.approx(np.mean(terms))


def test_the_interval_is_as_wide_as_the_estimate_varies():
    """Over fresh data the estimate spreads as the interval of one data set says, within a factor of two."""

    def draw():
        shared = RNG.normal(size=(40, 5))
        return [gram(shared + RNG.normal(size=(40, 5))) for _ in range(2)]

    spread = np.subtract(*np.quantile([float(cka(*draw())) for _ in range(200)], [0.975, 0.025]))
    widths = [interval.high - interval.low for interval in (cka_interval(*draw()) for _ in range(20))]
    assert spread / 2 < np.mean(widths) < spread * 2


def test_too_few_samples_and_constant_features():
    small = gram(RNG.normal(size=(5, 3)))
    assert cka_interval(small, small).low == -np.inf
    assert np.isnan(cka_interval(gram(np.ones((9, 3))), gram(RNG.normal(size=(9, 3)))).value)
    with pytest.raises(LisaError, match="3 samples"):
        hsic(small[:3, :3], small[:3, :3])
