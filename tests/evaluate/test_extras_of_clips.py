"""Metrics beside fidelity on clips: those of pictures frame by frame, and FVD as its library is called."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data.samples import Sample
from lisa.evaluate import extras
from lisa.evaluate.metrics.psnr_ssim import psnr

RNG = np.random.default_rng(0)
TRUE = [RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8) for _ in range(2)]
MADE = [RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8) for _ in range(2)]
SAMPLES = [Sample(str(i), clip, None, "a") for i, clip in enumerate(TRUE)]


def test_metrics_of_pictures_are_means_over_a_clips_frames():
    ready, missing = extras.prepare(["psnr"])
    found = extras.measure("psnr", ready["psnr"], MADE, SAMPLES)
    expected = [
        np.mean([psnr(a, b) for a, b in zip(true, made, strict=True)]) for true, made in zip(TRUE, MADE, strict=True)
    ]
    assert missing == {} and found.values == pytest.approx(expected)
    pictures = [Sample("x", TRUE[0][0], None, "a")]
    assert extras.measure("psnr", ready["psnr"], [MADE[0][0]], pictures).values == [psnr(TRUE[0][0], MADE[0][0])]


class Evaluator:
    """As cd-fvd's: what is measured is added to what was, until it is emptied."""

    def __init__(self, model, n_real, n_fake, device):
        print("Loading")
        self.told = (model, n_real, n_fake)
        self.real, self.fake = [np.zeros(1)], [np.zeros(1)]

    def empty_real_stats(self):
        self.real = []

    def empty_fake_stats(self):
        self.fake = []

    def compute_fvd(self, real, fake):
        assert real.dtype == fake.dtype == np.float32 and real.shape == (2, 9, 8, 8, 3)
        self.real.append(real)
        self.fake.append(fake)
        assert len(self.real) == len(self.fake) == 1 and self.told == ("i3d", "full", "full")
        return real.mean() - 2 * fake.mean()


def test_fvd_is_given_all_clips_and_starts_anew(monkeypatch, capsys):
    package = SimpleNamespace(fvd=SimpleNamespace(cdfvd=Evaluator))
    monkeypatch.setitem(sys.modules, "cdfvd", package)
    monkeypatch.setitem(sys.modules, "cdfvd.fvd", package.fvd)
    ready, missing = extras.prepare(["fvd"])
    assert missing == {}
    for _ in range(2):
        found = extras.measure("fvd", ready["fvd"], MADE, SAMPLES)
        assert found.values[0] == pytest.approx(np.mean(TRUE) - 2 * np.mean(MADE), rel=1e-5)
        assert found.of_set and "biased upwards" in found.notes[0]
    assert capsys.readouterr().out == "", "standard output may be JSON"
    assert ready["fvd"].features == {"source": "I3D of cd-fvd", "revision": "of unknown version"}


def test_what_fvd_cannot_measure_is_named_before_its_network_is_loaded(monkeypatch):
    def never(*_, **__):
        raise AssertionError("I3D is loaded")

    package = SimpleNamespace(fvd=SimpleNamespace(cdfvd=never))
    monkeypatch.setitem(sys.modules, "cdfvd", package)
    monkeypatch.setitem(sys.modules, "cdfvd.fvd", package.fvd)
    ready, _ = extras.prepare(["fvd"])
    short = [Sample(s.key, s.image[:8], None, "") for s in SAMPLES]
    for made, samples, message in (
        ([clip[:8] for clip in MADE], short, "clips of 8 frames: I3D needs 9"),
        (MADE[:1], SAMPLES[:1], "fvd of one clip"),
        ([MADE[0], MADE[1][:, :4]], SAMPLES, "of 2 shapes"),
        ([MADE[0][0]], [Sample("x", TRUE[0][0], None, "")], "fvd is of clips, these are pictures"),
    ):
        with pytest.raises(LisaError, match=message):
            extras.measure("fvd", ready["fvd"], made, samples)


def test_what_the_library_of_fvd_raises_is_one_message(monkeypatch):
    class Failing(Evaluator):
        def compute_fvd(self, real, fake):
            raise ValueError("no such luck\nat all")

    package = SimpleNamespace(fvd=SimpleNamespace(cdfvd=Failing))
    monkeypatch.setitem(sys.modules, "cdfvd", package)
    monkeypatch.setitem(sys.modules, "cdfvd.fvd", package.fvd)
    ready, _ = extras.prepare(["fvd"])
    with pytest.raises(LisaError, match=r"cd-fvd could not measure these clips \(.*no such luck\)"):
        extras.measure("fvd", ready["fvd"], MADE, SAMPLES)


def test_a_distance_of_frames_says_of_how_many_clips_it_is():
    ready = extras.Ready(lambda made, samples: extras.Measured([float(len(made))], of_set=True))
    found = extras.measure("fid", ready, MADE, SAMPLES)
    assert found.values == [18.0] and found.notes[0].startswith("fid of 2 clips is biased upwards")
    assert extras.measure("kid", ready, MADE, SAMPLES).notes == ()


def test_without_its_package_fvd_is_named():
    ready, missing = extras.prepare(["fvd", "psnr"])
    assert list(ready) == ["psnr"] and "needs the package 'cdfvd'" in missing["fvd"] and "[metrics]" in missing["fvd"]
