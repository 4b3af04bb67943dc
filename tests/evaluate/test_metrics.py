"""Metrics against truth worked out by hand."""

import math

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.evaluate import metrics
from lisa.evaluate.metrics import correlation, depth_rmse, edge_f1, miou, psnr_ssim, stroke_pck


def mask(*rows):
    return np.asarray([[c == "#" for c in row] for row in rows])


def line_at(column, size=9):
    made = np.zeros((size, size), bool)
    made[:, column] = True
    return made


def test_edge_f1_allows_exactly_one_pixel():
    truth = line_at(4)
    assert edge_f1.score(truth, truth) == 1
    assert edge_f1.score(truth, line_at(5)) == 1
    assert edge_f1.score(truth, line_at(6)) == 0
    diagonal = mask("#...", ".#..", "..#.", "...#")
    assert edge_f1.score(diagonal, np.eye(4, k=1, dtype=bool)) == 1


def test_edge_f1_is_the_harmonic_mean_of_precision_and_recall():
    both = line_at(1) | line_at(6)
    assert edge_f1.score(line_at(1), both) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert edge_f1.score(both, line_at(1)) == pytest.approx(2 / 3)
    half = line_at(1).copy()
    half[5:] = False  # 5 of 9 pixels; row 5 is still within one pixel of row 4: recall 6/9, precision 1
    assert edge_f1.score(line_at(1), half) == pytest.approx(2 * (6 / 9) / (1 + 6 / 9))


def test_edge_f1_of_empty_pictures():
    none = np.zeros((9, 9), bool)
    assert edge_f1.score(none, none) == 1
    assert edge_f1.score(none, line_at(2)) == 0 == edge_f1.score(line_at(2), none)


def test_edges_at_the_border_do_not_wrap_around():
    assert edge_f1.score(line_at(0), line_at(8)) == 0
    assert edge_f1.thicken(line_at(0)).sum() == 18


def test_miou_by_hand():
    truth = np.asarray([[0, 0, 1, 1], [0, 0, 1, 1]])
    made = np.asarray([[0, 0, 0, 1], [0, 0, 1, 1]])
    assert miou.score(truth, made) == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert miou.score(truth, truth) == 1 and miou.score(truth, 1 - truth) == 0
    assert miou.score(truth, np.full((2, 4), 2)) == 0
    # a class only in what was made counts: 0 -> 3/4, 1 -> 1, 2 -> 0
    invented = np.asarray([[0, 0, 1, 1], [0, 2, 1, 1]])
    assert miou.score(truth, invented) == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_depth_rmse_by_hand():
    truth = np.zeros((2, 2))
    assert depth_rmse.score(truth, truth) == 0 and depth_rmse.score(truth, truth + 1) == 1
    assert depth_rmse.score(truth, np.asarray([[0.6, 0], [0, 0.8]])) == pytest.approx(0.5)
    assert depth_rmse.score(np.uint8([[0, 20]]), np.uint8([[20, 0]])) == 20, "unsigned numbers do not wrap around"


def square(row, column, side=6, label=1, size=40):
    labels = np.zeros((size, size), int)
    labels[row : row + side, column : column + side] = label
    return labels


def test_stroke_pck_by_hand():
    truth = np.maximum(square(5, 5), square(25, 25, label=2))
    assert stroke_pck.score(truth, truth) == 1
    assert stroke_pck.score(truth, square(5, 5)) == 0.5
    assert stroke_pck.score(square(5, 5), square(5, 9)) == 1, "4 pixels are 0.1 of the side"
    assert stroke_pck.score(square(5, 5), square(5, 10)) == 0
    assert stroke_pck.score(square(5, 5), square(8, 8)) == 0, "the distance counts, not each direction"
    assert stroke_pck.score(square(5, 5), square(5, 5, side=2)) == 0, "a ninth of the area is not the shape"
    assert stroke_pck.score(square(5, 5), np.ones((40, 40))) == 0, "neither is a flooded background"
    assert stroke_pck.score(np.zeros((40, 40)), truth) == 1


def test_stroke_pck_is_not_moved_by_stray_pixels():
    made = square(5, 5)
    made[39, 30:40] = 1
    assert stroke_pck.score(square(5, 5), made) == 1


def test_psnr_by_hand():
    truth = np.zeros((4, 4, 3), np.uint8)
    assert psnr_ssim.psnr(truth, truth) == 60
    assert psnr_ssim.psnr(truth, truth + 255) == pytest.approx(0)
    assert psnr_ssim.psnr(truth, truth + 10) == pytest.approx(20 * math.log10(25.5))
    assert psnr_ssim.psnr(np.full((2, 2), 250, np.uint8), np.full((2, 2), 5, np.uint8)) < 1


def test_ssim_orders_pictures_as_it_should():
    truth = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    noisy = np.clip(truth + np.random.default_rng(1).normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    assert psnr_ssim.ssim(truth, truth) == pytest.approx(1)
    assert 0.5 < psnr_ssim.ssim(truth, noisy) < 1
    assert abs(psnr_ssim.ssim(truth, truth[::-1].copy())) < 0.2
    flat = [np.full((16, 16), v, np.uint8) for v in (100, 50)]
    c1 = (0.01 * 255) ** 2
    assert psnr_ssim.ssim(*flat) == pytest.approx((2 * 100 * 50 + c1) / (100**2 + 50**2 + c1), abs=1e-6)


def test_correlation_by_hand():
    a = np.asarray([0.0, 1.0, 2.0, 3.0])
    assert correlation.score(a, 5 * a + 2) == pytest.approx(1) and correlation.score(a, -a) == pytest.approx(-1)
    assert correlation.score(a, np.asarray([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0)
    assert correlation.score(a * 0, a) == 0 and correlation.score(a * 0, a * 0 + 4) == 1


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_arrays_of_different_size_are_named(name):
    with pytest.raises(LisaError, match=r"the truth is \(8, 8\), what was made \(8, 9\)"):
        metrics.get(name).score(np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8))


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_the_registry_says_truly_which_way_is_better(name):
    metric = metrics.get(name)
    truth, wrong = np.zeros((2, 16, 16), bool if name == "edge_f1" else np.uint8)
    truth[:, :4], wrong[:, 12:] = 1, 1
    assert (metric.score(truth, truth) > metric.score(truth, wrong)) == metric.higher_is_better
    assert isinstance(metric.score(truth, truth), float) and metric.about


def test_an_unknown_metric_and_a_picture_too_small():
    with pytest.raises(LisaError, match=r"unknown metric 'mIoU'.*Choices"):
        metrics.get("mIoU")
    with pytest.raises(LisaError, match="7x7"):
        psnr_ssim.ssim(np.zeros((6, 9)), np.zeros((6, 9)))
