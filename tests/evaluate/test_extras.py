"""Metrics beside fidelity: closed forms, and what is said where a package or weights are not there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny_readers
from lisa.cli.common import quiet_libraries
from lisa.common.errors import LisaError
from lisa.data.images import load_rgb
from lisa.data.samples import Sample
from lisa.evaluate import extras
from lisa.evaluate.extractors.clip import ClipReader
from lisa.evaluate.extractors.weights import locate

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(6)]
SAMPLES = [Sample(str(i), picture, None, f"caption {chr(97 + i)}") for i, picture in enumerate(PICTURES)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    quiet_libraries()
    return tiny_readers.clip(tmp_path_factory.mktemp("clip") / "clip")


def test_frechet_distance_in_closed_form():
    """Normal distributions: |difference of means|^2 + sum of (sigma1 - sigma2)^2 where covariances are diagonal."""
    signs = np.asarray(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T.astype(float)
    deviation = np.sqrt(8 / 7)  # of such a sample, with N - 1
    assert extras.frechet_distance(signs, signs) == pytest.approx(0, abs=1e-6)
    assert extras.frechet_distance(signs, signs + np.asarray([3, 0, 4])) == pytest.approx(25)
    assert extras.frechet_distance(signs, signs * [1, 2, 5]) == pytest.approx((1 + 16) * deviation**2)


def test_kernel_distance_in_closed_form():
    """The unbiased estimate, written out; near zero for two samples of one distribution, and repeatable."""
    true, made = np.random.default_rng(1).normal(size=(2, 30, 5))

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def unbiased(a, b):
        inside = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
        return sum(inside) - 2 * kernel(a, b).mean()

    assert extras.kernel_distance(true, made) == pytest.approx(unbiased(true, made))
    assert extras.kernel_distance(true, made + 2) > 50 * abs(extras.kernel_distance(true, made))
    before = torch.get_rng_state()
    subsets = [extras.kernel_distance(true, made[:20]) for _ in range(2)]
    assert subsets[0] == subsets[1] and torch.equal(torch.get_rng_state(), before)
    with pytest.raises(LisaError, match="of 1 and 30 pictures"):
        extras.kernel_distance(true[:1], made)


def test_clip_score_is_the_cosine_of_picture_and_caption(clip):
    ready, missing = extras.prepare(["clip_score", "clip_score"], str(clip))
    assert missing == {} and ready["clip_score"].features["revision"].startswith("content:")
    found = ready["clip_score"].run(PICTURES, SAMPLES)
    reader = ClipReader(locate(str(clip)))
    pictures, words = reader.images(PICTURES), reader.captions([s.caption for s in SAMPLES])
    cosines = [float(p @ w / np.sqrt((p @ p) * (w @ w))) for p, w in zip(pictures, words, strict=True)]
    assert found.values == pytest.approx([max(100 * c, 0) for c in cosines]) and not found.of_set
    record = found.to_json("clip_score", ready["clip_score"].features)
    assert (
        record["value"] == pytest.approx(np.mean(found.values)) and record["low"] <= record["value"] <= record["high"]
    )
    assert record["unit"] == "100 x cosine" and record["features"]["source"] == str(clip)
    with pytest.raises(LisaError, match=r"clip_score needs captions; 1 samples have none \('x' ...\)"):
        ready["clip_score"].run(PICTURES[:1], [Sample("x", PICTURES[0], None, " ")])


def test_distances_of_clips_features_name_them_and_warn(clip):
    ready, _ = extras.prepare(["fid_clip", "kid_clip"], str(clip))
    features = ClipReader(locate(str(clip))).images(PICTURES)
    same = ready["fid_clip"].run(PICTURES, SAMPLES)
    assert same.of_set and same.values[0] == pytest.approx(0, abs=1e-3)
    assert same.notes == ("fid_clip of 6 pictures is biased upwards: compare it at equal numbers only, and prefer kid",)
    turned = [255 - picture for picture in PICTURES]
    others = ClipReader(locate(str(clip))).images(turned)
    assert ready["kid_clip"].run(turned, SAMPLES).values[0] == pytest.approx(extras.kernel_distance(features, others))
    record = same.to_json("fid_clip", ready["fid_clip"].features)
    assert record["low"] is None and record["high"] is None and not record["higher_is_better"]


def test_those_without_networks_run_whatever_is_missing(tmp_path, monkeypatch):
    """Each reason once, with its remedy; nobody waits for a network more than once."""
    tried = []
    monkeypatch.setattr(extras, "locate", lambda source: tried.append(source) or locate(str(tmp_path / source)))
    for module in ("lpips", "cleanfid", "cleanfid.fid"):
        monkeypatch.setitem(sys.modules, module, None)
    ready, missing = extras.prepare(["psnr", "lpips", "fid", "kid", "clip_score", "fid_clip", "ssim"], "a b")
    assert list(ready) == ["psnr", "ssim"] and tried == ["a b"]
    assert (
        "package 'lpips', which is not installed" in missing["lpips"] and "lisa-diffusion[metrics]" in missing["lpips"]
    )
    assert missing["fid"] == missing["kid"] and "'cleanfid'" in missing["fid"]
    assert missing["clip_score"] == missing["fid_clip"] and "there is no folder" in missing["fid_clip"]
    assert ready["psnr"].run(PICTURES, SAMPLES).values == [60] * 6
    assert ready["ssim"].run(PICTURES[::-1], SAMPLES).values[0] < 0.2
    with pytest.raises(LisaError, match=r"unknown metric 'FID'.*Choices: psnr"):
        extras.prepare(["FID"])
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    assert "lisa-diffusion[metrics]" in extras.prepare(["kid_clip"])[1]["kid_clip"]


def test_lpips_is_given_what_it_expects(monkeypatch):
    """Pictures in -1..1, made and true, one pair at a time; in place of the package, one that needs torchvision."""

    class Distance(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex" and not verbose

        def forward(self, made, true):
            assert made.shape == true.shape == (1, 3, 40, 40)
            return (made - true).abs().mean().reshape(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    ready, _ = extras.prepare(["lpips"])
    assert ready["lpips"].features["source"] == "AlexNet of lpips"
    white, black = np.full((40, 40, 3), 255, np.uint8), np.zeros((40, 40, 3), np.uint8)
    assert ready["lpips"].run([white, black], [Sample(k, black, None, "") for k in "ab"]).values == [2, 0]
    with pytest.raises(LisaError, match=r"lpips needs pictures of 31 pixels a side at least; 1 are .*40x30 \.\.\."):
        ready["lpips"].run([white[:30]], [Sample("a", black[:30], None, "")])
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda **_: 1 / 0))
    assert "the weights of lpips are not on this disk, and could not be" in extras.prepare(["lpips"])[1]["lpips"]


def test_the_least_picture_of_lpips_is_the_least_that_its_alexnet_takes():
    """The shape of its layers up to the second pooling: 31 pixels go through, 30 do not."""
    layers = [torch.nn.Conv2d(3, 4, 11, 4, 2), torch.nn.MaxPool2d(3, 2), torch.nn.Conv2d(4, 4, 5, 1, 2)]
    network = torch.nn.Sequential(*layers, torch.nn.MaxPool2d(3, 2), torch.nn.Conv2d(4, 4, 3, 1, 1))
    samples = [Sample("a", np.zeros((31, 31, 3), np.uint8), None, "")]
    network(torch.zeros(1, 3, 31, 31))
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.zeros(1, 3, 30, 31))
    with pytest.raises(LisaError, match="31x30"):
        extras._lpips(lambda *_: 0, [np.zeros((30, 31, 3), np.uint8)], samples)
    assert extras._lpips(lambda *_: 0, [samples[0].image], samples).values == [0]


def test_clean_fid_is_given_two_fresh_folders(monkeypatch):
    """All pictures of both sets, as PNG, and nothing else; the folders are gone afterwards."""
    seen = []

    def compute(true, made, **options):
        seen.append([true, made, options["mode"]])
        for folder, pictures in ((true, PICTURES), (made, PICTURES[::-1])):
            files = sorted(Path(folder).iterdir())
            assert all(np.array_equal(load_rgb(file), made) for file, made in zip(files, pictures, strict=True))
        return np.float64(7.5)

    fake = SimpleNamespace(compute_fid=compute, compute_kid=compute, build_feature_extractor=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "cleanfid", SimpleNamespace(fid=fake))
    monkeypatch.setitem(sys.modules, "cleanfid.fid", fake)
    ready, _ = extras.prepare(["fid", "kid"])
    fid = ready["fid"].run(PICTURES[::-1], SAMPLES)
    assert fid.values == [7.5] and fid.of_set and "biased" in fid.notes[0]
    assert ready["kid"].run(PICTURES[::-1], SAMPLES).notes == () and ready["kid"].features["source"].startswith(
        "Inception"
    )
    assert all(not Path(folder).exists() for true, made, mode in seen for folder in (true, made) if mode == "clean")
    assert [mode for _, _, mode in seen] == ["clean", "clean"]
    fake.build_feature_extractor = lambda *_, **__: 1 / 0
    assert "the weights of cleanfid are not on this disk" in extras.prepare(["fid"])[1]["fid"]


def test_subsets_of_kid_are_the_same_each_time_and_what_clean_fid_raises_is_told(monkeypatch):
    """clean-fid draws them from numpy's global state, which is as before afterwards."""
    fake = SimpleNamespace(
        compute_fid=lambda *_, **__: 1 / 0,
        compute_kid=lambda *_, **__: np.random.random(),
        build_feature_extractor=lambda *_, **__: None,
    )
    monkeypatch.setitem(sys.modules, "cleanfid", SimpleNamespace(fid=fake))
    monkeypatch.setitem(sys.modules, "cleanfid.fid", fake)
    ready, _ = extras.prepare(["fid", "kid"])
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()
    assert ready["kid"].run(PICTURES, SAMPLES).values == ready["kid"].run(PICTURES, SAMPLES).values
    with pytest.raises(LisaError, match=r"clean-fid could not measure these pictures \(.*division by zero"):
        ready["fid"].run(PICTURES, SAMPLES)
    assert np.random.get_state()[1].tolist() == before


def test_the_real_packages_where_they_are():
    """Where torchvision and the weights are there, too, equal pictures are at no distance; else the reason is said."""
    ready, missing = extras.prepare(["lpips", "fid"])
    assert set(ready) | set(missing) == {"lpips", "fid"}
    for name, module in (("lpips", "lpips"), ("fid", "cleanfid")):
        if name in ready:
            assert ready[name].run(PICTURES, SAMPLES).values[0] == pytest.approx(0, abs=1e-3)
        else:
            assert ("not installed" if importlib.util.find_spec(module) is None else "could not be") in missing[name]
