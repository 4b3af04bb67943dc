"""Probes against planted truth and against ridge regression written out."""

from __future__ import annotations

import numpy as np
import pytest

from lisa.analyse.ridge import PENALTIES, Sums, fit_probes
from lisa.common.errors import LisaError

RNG = np.random.default_rng(0)


def planted(samples, positions, noise, seed):
    """Features that are a fixed linear map of what is planted, far from zero and on very different scales."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    mix, scale, shift = fixed.normal(size=(3, 12)), 10.0 ** fixed.uniform(-3, 3, 12), fixed.normal(size=12) * 50
    told, untold = rng.normal(size=(samples, positions, 3)), rng.normal(size=(samples, positions, 2))
    features = (told @ mix + noise * rng.normal(size=(samples, positions, 12)) + shift) * scale
    return features, told + 4, untold


def fitted(noise):
    features, told, untold = planted(40, 16, noise, seed=1)
    targets = np.concatenate([told, untold], -1)
    folds = [Sums.of(features[i::4], targets[i::4]) for i in range(4)]
    return fit_probes(folds, {"told": slice(0, 3), "untold": slice(3, None)})


def r2(probe, features, targets):
    errors, totals = probe.errors(features, targets)
    return 1 - errors.sum() / totals.sum()


def test_what_is_planted_is_read_and_nothing_else():
    probes = fitted(noise=1e-3)
    features, told, untold = planted(20, 16, 1e-3, seed=2)
    assert r2(probes["told"], features, told) > 0.999
    assert abs(r2(probes["untold"], features, untold)) < 0.02
    assert probes["told"].penalty < probes["untold"].penalty


def test_noise_in_the_feature_costs_what_it_must():
    """One target seen through 12 noisy copies: R2 is that of their mean, v / (v + noise / 12)."""
    rng = np.random.default_rng(3)

    def draw(samples):
        target = rng.normal(size=(samples, 50, 1))
        return target + 2 * rng.normal(size=(samples, 50, 12)), target

    x, y = draw(200)
    folds = [Sums.of(x[i::4], y[i::4]) for i in range(4)]
    probe = fit_probes(folds, {"y": slice(None)})["y"]
    assert r2(probe, *draw(200)) == pytest.approx(1 / (1 + 4 / 12), abs=0.01)


def test_is_ridge_regression_on_standardised_inputs():
    x, y = RNG.normal(size=(60, 5)) * [1, 10, 0.1, 3, 1] + 5, RNG.normal(size=(60, 2))
    folds = [Sums.of(x[i::2, None], y[i::2, None]) for i in range(2)]
    probe = fit_probes(folds, {"y": slice(None)})["y"]
    z = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(z.T @ z / 60 + probe.penalty * np.eye(5), z.T @ (y - y.mean(0)) / 60)
    np.testing.assert_allclose(x @ probe.weight + probe.bias, z @ weight + y.mean(0), atol=1e-9)
    errors, totals = probe.errors(x[:, None], y[:, None])
    np.testing.assert_allclose(errors, np.square(y - z @ weight - y.mean(0)).sum(1))
    np.testing.assert_allclose(totals, np.square(y - y.mean(0)).sum(1))
    # And the penalty is the one whose predictions of the left-out half are nearest.
    losses = []
    for penalty in PENALTIES:
        loss = 0.0
        for left, kept in ((0, 1), (1, 0)):
            a, b = x[kept::2], y[kept::2]
            mean, deviation = a.mean(0), a.std(0)
            z = (a - mean) / deviation
            weight = np.linalg.solve(z.T @ z / len(a) + penalty * np.eye(5), z.T @ (b - b.mean(0)) / len(a))
            loss += np.square(y[left::2] - b.mean(0) - (x[left::2] - mean) / deviation @ weight).sum()
        losses.append(loss)
    assert probe.penalty == PENALTIES[int(np.argmin(losses))]


def test_what_is_the_same_in_all_samples_tells_nothing_of_one():
    """A feature that marks positions, and targets with a mean picture: nothing is read, as of a feature of noise."""
    fixed = np.random.default_rng(5)
    marks, picture = fixed.normal(size=(30, 6)), 3 * fixed.normal(size=(30, 1))

    def draw(samples, told, seed):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=(samples, 30, 1))
        x = marks + 0.1 * rng.normal(size=(samples, 30, 6))
        x[..., :1] += told * y
        return x, y + picture

    for told, expected in ((0.0, 0.0), (0.1, 0.5)):  # 0.1 of it through noise of 0.1
        x, y = draw(200, told, 1)
        probe = fit_probes([Sums.of(x[i::4], y[i::4]) for i in range(4)], {"y": slice(None)})["y"]
        assert probe.mean.shape == probe.bias.shape == (30, 1)
        assert r2(probe, *draw(200, told, 2)) == pytest.approx(expected, abs=0.02)


def test_is_ridge_regression_within_positions():
    """As on rows from which the mean of their position is taken."""
    x, y = RNG.normal(size=(40, 3, 4)) + 9 * RNG.normal(size=(3, 4)), RNG.normal(size=(40, 3, 2))
    probe = fit_probes([Sums.of(x[i::2], y[i::2]) for i in range(2)], {"y": slice(None)})["y"]
    a, b = ((each - each.mean(0)).reshape(120, -1) for each in (x, y))
    deviation = a.std(0)
    z = a / deviation
    weight = np.linalg.solve(z.T @ z / 120 + probe.penalty * np.eye(4), z.T @ b / 120) / deviation[:, None]
    np.testing.assert_allclose(probe.weight, weight, atol=1e-9)
    np.testing.assert_allclose(probe.bias, y.mean(0) - x.mean(0) @ weight, atol=1e-9)


def test_constant_inputs_and_no_outputs():
    x, y = np.concatenate([RNG.normal(size=(40, 2)), np.full((40, 1), 3e6)], 1), RNG.normal(size=(40, 1))
    folds = [Sums.of(x[i::4, None], y[i::4, None]) for i in range(4)]
    assert np.isfinite(fit_probes(folds, {"y": slice(None)})["y"].weight).all()
    empty = [Sums.of(x[i::4, None], y[i::4, None, :0]) for i in range(4)]
    errors, totals = fit_probes(empty, {"y": slice(None)})["y"].errors(x[:, None], y[:, None, :0])
    assert not errors.any() and not totals.any()
    with pytest.raises(LisaError, match="1 fold"):
        fit_probes(folds[:1], {"y": slice(None)})
