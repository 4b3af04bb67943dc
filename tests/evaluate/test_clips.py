"""Clips are judged frame by frame, and by what holds between the frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data.images import save_png
from lisa.data.sources import MovingScenesSource
from lisa.evaluate import protocols
from lisa.evaluate.clips import frames_of
from lisa.evaluate.metrics.temporal import flicker, look_up, warping_error
from lisa.evaluate.runner import evaluate_folder, evaluate_images, fidelity_gain

FRAMES, SIZE = 4, 64


@pytest.fixture(scope="module")
def source():
    return MovingScenesSource("edges", seed=4, count=4, size=SIZE, frames=FRAMES)


def test_looking_up_is_bilinear():
    frame = np.arange(12.0).reshape(3, 4)[..., None] ** 2
    flow = np.zeros((3, 4, 2))
    assert np.array_equal(look_up(frame, flow), frame)
    flow[0, 0] = (2, 1)  # x to the right, y down
    flow[1, 1] = (0.25, 0)
    flow[2, 3] = (0, -0.5)
    flow[0, 3] = (5, -5)  # beyond the border
    found = look_up(frame, flow)
    assert found[0, 0] == frame[1, 2]
    assert found[1, 1] == pytest.approx(0.75 * frame[1, 1] + 0.25 * frame[1, 2])
    assert found[2, 3] == pytest.approx((frame[1, 3] + frame[2, 3]) / 2) and found[0, 3] == frame[0, 3]


def test_the_warping_error_is_of_values_between_0_and_1_where_both_frames_see_the_pixel():
    made = np.zeros((3, 8, 8, 3), np.uint8)
    made[1, :, 1:] = made[0, :, :-1]
    made[0, 2, 2] = made[1, 2, 3] = 255  # moves to the right, then stops
    made[2, 2, 3] = 255
    flow, visible = np.zeros((2, 8, 8, 2)), np.ones((2, 8, 8), bool)
    visible[:, :, -1] = visible[0, 2, 3] = False  # what was at (2, 3) is covered
    flow[0, 2, 2, 0] = 1
    truth = {"flow": flow, "visible": visible}
    assert warping_error(truth, made) == 0
    wrong = made.copy()
    wrong[1, 5, 5] = (0, 51, 102)  # a speck in one frame: seen from both sides, in values 0, 0.2, 0.4
    both = (0.2**2 + 0.4**2) / 3
    assert warping_error(truth, wrong) == pytest.approx((both / 55 + both / 56) / 2)
    assert warping_error({**truth, "flow": np.zeros_like(flow)}, made) > 0, "the motion counts"
    with pytest.raises(LisaError, match="Judge a clip by its own motion"):
        warping_error(truth, made[:2])
    with pytest.raises(LisaError, match="no pixel of the clip is seen"):
        warping_error({**truth, "visible": ~np.ones_like(visible)}, made)


def test_flicker_is_the_mean_change():
    assert flicker([0.5, 0.7, 0.4]) == pytest.approx(0.25) and flicker([0.3] * 4) == 0


def test_figures_of_a_clip_are_means_over_its_frames(source):
    """And an exact clip is nearly perfect between its frames, other than one that stands still or comes in disorder."""
    samples = [source[i] for i in range(4)]
    made = [samples[i - 1].image if i == 2 else sample.image for i, sample in enumerate(samples)]
    result = evaluate_images(made, samples, "edges")
    protocol = protocols.find("edges", exact=True)
    for sample, clip in zip(samples, made, strict=True):
        frames = [protocol.judge(frame, each) for frame, each in zip(frames_of(sample), clip, strict=True)]
        values = [frame["edge_f1"] for frame in frames]
        scores = result["per_image"][sample.key]
        assert scores["fidelity"] == scores["edge_f1"] == pytest.approx(np.mean(values))
        assert scores["flicker"] == pytest.approx(np.mean(np.abs(np.diff(values))))
    assert result["protocol"] == "scenes/edges/frames" and "mean over the frames" in result["about"]
    assert list(result["metrics"]) == ["edge_f1", "flicker", "warping_error"]
    assert all(result["metrics"][name]["higher_is_better"] is False for name in ("flicker", "warping_error"))
    assert result["samples"] == 4 and result["fidelity"]["low"] < result["fidelity"]["high"]

    true = evaluate_images([s.image for s in samples], samples, "edges")
    assert fidelity_gain(true, result).value > 0
    exact = true["metrics"]["warping_error"]["value"]
    frozen = evaluate_images([np.repeat(s.image[:1], FRAMES, 0) for s in samples], samples, "edges")
    mixed = evaluate_images([s.image[[2, 0, 3, 1]] for s in samples], samples, "edges")
    assert exact < 1e-5
    assert frozen["metrics"]["warping_error"]["value"] > 1e-4
    assert mixed["metrics"]["warping_error"]["value"] > 1e-4
    assert frozen["metrics"]["flicker"]["value"] > true["metrics"]["flicker"]["value"]


def test_each_frame_has_its_own_truth(source):
    """A frame at another's place is not what was asked for there."""
    sample = source[0]
    swapped = evaluate_images([sample.image[::-1].copy()], [sample], "edges")
    assert swapped["fidelity"]["value"] < evaluate_images([sample.image], [sample], "edges")["fidelity"]["value"] - 0.05


def test_clips_without_exact_truth_have_no_warping_error(source):
    samples = [replace(source[i], truth=None) for i in range(2)]
    result = evaluate_images([s.image for s in samples], samples, "lowres")
    assert list(result["metrics"]) == ["psnr", "ssim", "flicker"] and result["fidelity_unit"] == "dB"
    assert result["metrics"]["flicker"]["unit"] == "dB" and result["protocol"] == "pictures/lowres/frames"


def test_a_folder_of_clips(source, tmp_path):
    samples = [source[i] for i in range(2)]
    for sample in samples:
        for number, frame in enumerate(sample.image):
            save_png(frame, tmp_path / sample.key / f"{number}.png")
    result = evaluate_folder(tmp_path, source, "edges", indices=[0, 1])
    assert result == evaluate_images([s.image for s in samples], samples, "edges")
    with pytest.raises(LisaError, match=r"lacks 2 of 4 clips \('moving-scene-4-0000002'.*missing clip is never"):
        evaluate_folder(tmp_path, source, "edges")
    (tmp_path / samples[1].key / "3.png").unlink()
    with pytest.raises(LisaError, match=r"the clip made for .*0001' is uint8 \(3, 64, 64, 3\), its truth \(4, 64"):
        evaluate_folder(tmp_path, source, "edges", indices=[0, 1])


def test_clips_and_pictures_are_not_judged_together(source):
    clip = source[0]
    picture = replace(frames_of(clip)[0], key="picture")
    with pytest.raises(LisaError, match="some samples are clips and some pictures"):
        evaluate_images([clip.image, picture.image], [clip, picture], "edges")
