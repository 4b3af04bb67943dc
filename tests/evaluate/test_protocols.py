import dataclasses

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data import conditions
from lisa.data.images import load_rgb
from lisa.data.photos import sample_photos
from lisa.data.samples import Sample
from lisa.data.scenes import SCENE_CONDITIONS
from lisa.data.sources import ScenesSource
from lisa.data.transforms import PairedTransform
from lisa.evaluate import protocols

N = 40
#: fidelity that the true picture must reach on average, and that another scene's picture must stay under
BOUNDS = {
    "edges": (0.99, 0.2),
    "segmentation": (0.97, 0.3),
    "depth": (0.96, 0.65),
    "skeleton": (0.98, 0.15),
    "lowres": (59, 12),
}


@pytest.fixture(scope="module")
def scenes():
    source = ScenesSource(seed=21, count=N)
    return [source[i] for i in range(N)]


@pytest.fixture(scope="module")
def photographs():
    fit = PairedTransform((96, 96))
    pictures = [fit.fit(load_rgb(path), 0, "lanczos") for path in sample_photos().values()]
    return [Sample(str(i), picture, None, "") for i, picture in enumerate(pictures)]


def mean(protocol, samples, pictures):
    return np.mean([protocol.judge(s, p)["fidelity"] for s, p in zip(samples, pictures, strict=True)])


@pytest.mark.parametrize("condition", SCENE_CONDITIONS)
def test_on_scenes_the_true_picture_scores_high_and_a_shuffled_one_low(scenes, condition):
    protocol = protocols.find(condition, exact=True)
    true = [s.image for s in scenes]
    best, shuffled = mean(protocol, scenes, true), mean(protocol, scenes, true[1:] + true[:1])
    assert best >= BOUNDS[condition][0] and shuffled <= BOUNDS[condition][1], (best, shuffled)


@pytest.mark.parametrize("condition", SCENE_CONDITIONS)
def test_on_scenes_fidelity_falls_with_every_pixel_of_displacement(scenes, condition):
    protocol = protocols.find(condition, exact=True)
    shifted = [mean(protocol, scenes, [np.roll(s.image, by, (0, 1)) for s in scenes]) for by in (0, 3, 6, 12)]
    assert shifted == sorted(shifted, reverse=True) and shifted[0] > shifted[2] + 0.03


@pytest.mark.parametrize("condition", [c for c in SCENE_CONDITIONS if c != "lowres"])  # its fidelity is the error
def test_on_scenes_noise_as_a_vae_leaves_it_hardly_matters(scenes, condition):
    rng = np.random.default_rng(0)
    noisy = [np.clip(s.image + rng.normal(0, 4, s.image.shape), 0, 255).astype(np.uint8) for s in scenes]
    protocol = protocols.find(condition, exact=True)
    assert mean(protocol, scenes, noisy) > BOUNDS[condition][0] - 0.03


def test_segmentation_looks_at_kinds_and_not_at_which_shape():
    source = ScenesSource("segmentation", seed=3, count=60)
    for i in range(60):
        sample = source[i]
        kinds = sample.truth["kinds"][1:]
        if len(kinds) == 2 and kinds[0] == kinds[1]:
            break
    swapped = dict(sample.truth, colours=[sample.truth["colours"][k] for k in (0, 2, 1)])
    exchanged = dataclasses.replace(sample, truth=swapped)
    protocol = protocols.find("segmentation", exact=True)
    assert protocol.judge(exchanged, sample.image) == protocol.judge(sample, sample.image)
    assert protocols.find("skeleton", exact=True).judge(exchanged, sample.image)["fidelity"] < 1


def test_depth_fidelity_is_one_minus_the_error(scenes):
    protocol = protocols.find("depth", exact=True)
    scores = protocol.judge(scenes[0], scenes[1].image)
    assert scores["fidelity"] == 1 - scores["depth_rmse"]
    assert protocol.fidelity_rule == "1 - depth_rmse" and protocol.fidelity_unit == ""
    assert protocols.find("lowres", exact=True).fidelity_unit == "dB"


@pytest.mark.parametrize("condition", conditions.NAMES)
def test_on_photographs_the_true_picture_scores_best_and_a_shuffled_one_low(photographs, condition):
    protocol = protocols.find(condition, exact=False)
    true = [s.image for s in photographs]
    best, shuffled = mean(protocol, photographs, true), mean(protocol, photographs, true[1:] + true[:1])
    rng = np.random.default_rng(0)
    near = [np.clip(p + rng.normal(0, 3, p.shape), 0, 255).astype(np.uint8) for p in true]
    assert best == pytest.approx(60 if protocol.fidelity_unit == "dB" else 1)
    assert shuffled < mean(protocol, photographs, near) < best
    assert shuffled < (20 if protocol.fidelity_unit == "dB" else 0.62)


def test_every_condition_that_can_be_made_can_be_judged():
    assert set(SCENE_CONDITIONS) == set(protocols.SCENES) and set(conditions.NAMES) == set(protocols.PICTURES)
    assert protocols.exists("canny", exact=False) and not protocols.exists("canny", exact=True)


def test_bad_input_is_named(scenes):
    with pytest.raises(LisaError, match=r"unknown condition to evaluate on pictures 'depth'.*Choices: canny"):
        protocols.find("depth", exact=False)
    protocol = protocols.find("edges", exact=True)
    with pytest.raises(LisaError, match=r"made for 'scene-21-0000000' is uint8 \(32, 32, 3\), its truth \(64, 64, 3\)"):
        protocol.judge(scenes[0], scenes[0].image[:32, :32])
    with pytest.raises(LisaError, match="float32"):
        protocol.judge(scenes[0], scenes[0].image.astype(np.float32))
    with pytest.raises(LisaError, match="carries no exact truth"):
        protocol.judge(dataclasses.replace(scenes[0], truth=None), scenes[0].image)
