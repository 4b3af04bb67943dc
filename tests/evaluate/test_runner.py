import json

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data.images import save_png
from lisa.data.photos import export_sample_photos
from lisa.data.prepare import prepare
from lisa.data.sources import ScenesSource, paired_folder
from lisa.evaluate.runner import evaluate_folder, evaluate_images, fidelity_gain


@pytest.fixture(scope="module")
def source():
    return ScenesSource("edges", seed=4, count=12)


@pytest.fixture
def folder(tmp_path, source):
    for i in range(12):
        save_png(source[(i + (i % 3 == 0)) % 12].image, tmp_path / "made" / f"{source.keys[i]}.png")
    return tmp_path / "made"


def test_a_folder_and_arrays_give_the_same_result(folder, source):
    samples = [source[i] for i in range(12)]
    images = [source[(i + (i % 3 == 0)) % 12].image for i in range(12)]
    result = evaluate_folder(folder, source, "edges")
    assert result == evaluate_images(images, samples, "edges")
    assert json.loads(json.dumps(result)) == result, "plain JSON"
    assert result["protocol"] == "scenes/edges" and result["samples"] == 12 and result["fidelity_rule"] == "edge_f1"
    values = [result["per_image"][k]["fidelity"] for k in source.keys]
    assert result["fidelity"]["value"] == pytest.approx(np.mean(values))
    assert result["fidelity"]["low"] < np.mean(values) < result["fidelity"]["high"]
    assert [v > 0.9 for v in values] == [i % 3 != 0 for i in range(12)], "each picture is judged by its own truth"
    assert result["metrics"]["edge_f1"] == {**result["fidelity"], "unit": "", "higher_is_better": True}


def test_the_interval_is_repeatable_and_follows_the_number_of_resamples(folder, source):
    first = evaluate_folder(folder, source, "edges", seed=1)
    assert first == evaluate_folder(folder, source, "edges", seed=1)
    assert first["fidelity"] != evaluate_folder(folder, source, "edges", seed=2)["fidelity"]


def test_missing_pictures_are_named_and_never_skipped(folder, source):
    for i in (3, 5, 6, 9):
        (folder / f"{source.keys[i]}.png").unlink()
    with pytest.raises(LisaError, match=r"lacks 4 of 12 pictures \('scene-4-0000003', .*'scene-4-0000006' \.\.\.\)"):
        evaluate_folder(folder, source, "edges")
    assert evaluate_folder(folder, source, "edges", indices=[0, 1, 2])["samples"] == 3
    with pytest.raises(LisaError, match="there is no folder"):
        evaluate_folder(folder / "none", source, "edges")


def test_bad_pictures_are_named(folder, source):
    path = folder / f"{source.keys[2]}.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(LisaError, match=r"scene-4-0000002.png' is truncated or damaged"):
        evaluate_folder(folder, source, "edges")
    save_png(np.zeros((32, 32, 3), np.uint8), path)
    with pytest.raises(LisaError, match=r"made for 'scene-4-0000002' is uint8 \(32, 32, 3\)"):
        evaluate_folder(folder, source, "edges")
    path.write_bytes(good)
    path.with_suffix(".jpg").write_bytes(good)
    with pytest.raises(LisaError, match=r"holds both 'scene-4-0000002.png' and 'scene-4-0000002.jpg'"):
        evaluate_folder(folder, source, "edges")


def test_bad_calls_are_named(source):
    sample = source[0]
    with pytest.raises(LisaError, match="1 pictures for 2 samples"):
        evaluate_images([sample.image], [sample, sample], "edges")
    with pytest.raises(LisaError, match="0 pictures for 0 samples"):
        evaluate_images([], [], "edges")
    with pytest.raises(LisaError, match="two samples have the same key"):
        evaluate_images([sample.image] * 2, [sample, sample], "edges")
    with pytest.raises(LisaError, match="unknown condition to evaluate on scenes 'edge'"):
        evaluate_images([sample.image], [sample], "edge")


def test_the_gain_over_a_base_is_paired(source):
    samples = [source[i] for i in range(12)]
    good = evaluate_images([s.image for s in samples], samples, "edges")
    poor = evaluate_images([samples[i - 1].image for i in range(12)], samples, "edges")
    gain = fidelity_gain(good, poor)
    assert gain.value == pytest.approx(good["fidelity"]["value"] - poor["fidelity"]["value"]) and gain.low > 0.5
    nothing = fidelity_gain(good, good)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    with pytest.raises(LisaError, match="different samples or protocols"):
        fidelity_gain(good, evaluate_images([s.image for s in samples[:5]], samples[:5], "edges"))


@pytest.mark.parametrize("condition", ["canny", "lowres"])
def test_photographs_from_the_folder_to_the_numbers(tmp_path, condition):
    export_sample_photos(tmp_path / "photos")
    pairs = paired_folder(prepare(tmp_path / "photos", condition, size=64).out)
    for i in range(len(pairs)):
        save_png(pairs[i].image, tmp_path / "same" / f"{pairs.keys[i]}.png")
        save_png(pairs[i - 1].image, tmp_path / "other" / f"{pairs.keys[i]}.png")
    same, other = (evaluate_folder(tmp_path / name, pairs, condition) for name in ("same", "other"))
    assert same["protocol"] == f"pictures/{condition}"
    assert same["fidelity"]["value"] == pytest.approx(1 if condition == "canny" else 60)
    assert fidelity_gain(same, other).low > 0.2
    with pytest.raises(LisaError, match="Evaluate at the size"):
        evaluate_folder(tmp_path / "same", paired_folder(tmp_path / "photos", require_condition=False), condition)
    originals = paired_folder(tmp_path / "photos", require_condition=False)
    resized = evaluate_folder(tmp_path / "same", originals, condition, size=(64, 64))
    assert resized["per_image"] == same["per_image"]
