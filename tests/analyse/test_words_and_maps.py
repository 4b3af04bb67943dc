"""The caption's words, and features as pictures."""

from __future__ import annotations

import numpy as np

from lisa.analyse.maps import principal_maps, signed_maps
from lisa.analyse.words import bag, vocabulary


def test_words_that_tell_captions_apart():
    captions = ["a red Star", "a red circle", "a blue star", "a blue, circle", *["a green circle"] * 16]
    assert vocabulary(captions) == ["green", "blue", "circle", "red", "star"]  # "a" is in all of them
    assert bag(["A blue star", "the"], ["blue", "star", "red"]).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert vocabulary(["same"] * 9) == [] and bag(["same"] * 9, []).shape == (9, 0)


def test_principal_maps_show_the_largest_component_in_red():
    """Channel 2 varies most, from left to right; channel 0 a little, from top to bottom; nothing else does."""
    feature = np.zeros((2, 4, 4, 6), np.float32)
    feature[:, 2] = 100 + 10 * np.arange(6)
    feature[:, 0] = np.arange(4)[:, None]
    first, second = principal_maps(feature, (8, 12))
    assert first.shape == (8, 12, 3) and (first == second).all()
    red, green, blue = first[..., 0], first[..., 1], first[..., 2]
    assert (np.diff(red[0].astype(int)) >= 0).all() and red[0, 0] == 0 and red[0, -1] == 255 and (red == red[0]).all()
    assert (green == green[:, :1]).all() and green[0, 0] == 0 and green[-1, 0] == 255
    assert len(np.unique(blue)) <= 4
    assert principal_maps(feature[:, :1], (8, 12))[0].shape == (8, 12, 3)  # fewer channels than colours


def test_signed_maps_are_grey_at_zero_and_share_a_scale():
    score = np.random.default_rng(0).normal(size=(1, 4, 8, 8))
    (strong,), (none,), (weak,) = signed_maps([score, 0 * score, score / 10], (8, 8))
    assert (none == 128).all()
    away = np.abs(strong.astype(int) - 128)
    kept = away < 126  # what exceeds the scale is cut
    assert 0 < (~kept).mean() < 0.05  # a hundredth of the values, and rounding
    assert np.abs(np.abs(weak.astype(int) - 128) - away / 10)[kept].max() <= 2
