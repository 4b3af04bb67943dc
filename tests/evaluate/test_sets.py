"""Several pictures per sample, as ControlNet++'s scripts judge them; intervals are over the samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lisa.build.evaluation import Judging, evaluate
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.common.files import write_json
from lisa.data.images import save_png
from lisa.data.samples import Sample
from lisa.data.sources import ScenesSource
from lisa.evaluate import extras, published
from lisa.evaluate.runner import evaluate_images, evaluate_sets

RNG = np.random.default_rng(0)
NAMES = ["0", "1", "2"]


class Segments:
    """Reads the class off the first channel; counts how often it is asked."""

    classes = 2

    def __init__(self):
        self.reads = 0

    def __call__(self, image):
        self.reads += 1
        return image[..., 0].astype(np.int64)


def picture(*classes):
    return np.repeat(np.asarray([classes], np.uint8)[..., None], 3, -1)


def test_classes_are_counted_over_all_pictures():
    """ControlNet++ gives one mIoU of all four groups together, which is not the mean of theirs."""
    samples = [Sample("a", picture(0, 0, 1, 1), None, ""), Sample("b", picture(0, 0, 0, 0), None, "")]
    right, wrong = [s.image for s in samples], [picture(0, 0, 0, 1), picture(0, 0, 0, 1)]
    protocol, reader = published.find("lisa", "segmentation"), Segments()
    both = published.evaluate(protocol, reader, [right, wrong], samples)
    assert reader.reads == 2 * 3, "the truth is read once for all pictures of a sample"
    # class 0: 6 of 6 and 5 of 7 pixels; class 1: 2 of 2 and 1 of 3
    assert both["fidelity"]["value"] == pytest.approx(((6 + 5) / (6 + 7) + (2 + 1) / (2 + 3)) / 2)
    assert both["per_image"]["a"]["miou"] == pytest.approx(((2 + 2) / (2 + 3) + (2 + 1) / (2 + 2)) / 2)
    alone = published.evaluate(protocol, reader, [right], samples)
    twice = published.evaluate(protocol, reader, [right, right], samples)
    assert both["samples"] == 2 and twice == alone, "twice the same tells nothing more: intervals are over samples"


def test_canny_is_of_the_pixels_of_all_pictures_of_a_sample():
    """By hand, as torchmetrics' F1 of the four flattened together; the mean over samples follows."""
    from lisa.data.conditions.canny import edge_mask

    square = np.zeros((32, 32, 3), np.uint8)
    square[8:24, 8:24] = 255
    samples = [Sample("a", square, None, ""), Sample("b", square, None, "")]
    shifted, blank = np.roll(square, 1, axis=0), np.zeros_like(square)
    result = published.evaluate(
        published.find("controlnet++", "canny"), None, [[shifted, square], [blank, square]], samples
    )
    truth, made = edge_mask(square), edge_mask(shifted)
    expected = 2 * (truth & made).sum() / (2 * truth.sum() + made.sum())
    assert 0 < expected < 0.9 and result["per_image"]["a"]["pixel_f1"] == pytest.approx(expected)
    assert result["fidelity"]["value"] == pytest.approx((expected + 1) / 2)


def test_figures_of_single_pictures_are_averaged():
    source = ScenesSource("edges", seed=4, count=6)
    samples = [source[i] for i in range(6)]
    right, turned = [s.image for s in samples], [s.image[::-1] for s in samples]
    alone = [evaluate_images(made, samples, "edges") for made in (right, turned)]
    both = evaluate_sets([right, turned], samples, "edges")
    for sample in samples:
        values = [each["per_image"][sample.key]["edge_f1"] for each in alone]
        assert both["per_image"][sample.key]["edge_f1"] == np.mean(values) and values[0] > values[1]
    mean = np.mean([each["fidelity"]["value"] for each in alone])
    assert both["samples"] == 6 and both["fidelity"]["value"] == pytest.approx(mean)
    assert evaluate_sets([right, right], samples, "edges") == alone[0]
    whole = published.find("lisa", "lowres")
    psnr = [published.evaluate(whole, None, [made], samples)["fidelity"]["value"] for made in (right, turned)]
    both = published.evaluate(whole, None, [right, turned], samples)
    assert both["fidelity"]["value"] == pytest.approx(np.mean(psnr)) and psnr[0] == 60 > psnr[1]
    for made, found in (([right, turned[:1]], "6, 1"), ([], "no"), ([right[:1]], "1")):
        with pytest.raises(LisaError, match=f"^{found} pictures for 6 samples"):
            evaluate_sets(made, samples, "edges")


def test_other_metrics():
    """Per picture the mean of both; of a set the mean of the two distances, not that of all pictures together."""
    pictures = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(6)]
    samples = [Sample(str(i), made, None, "") for i, made in enumerate(pictures[:3])]
    sets = [pictures[:3], pictures[3:]]
    ready, _ = extras.prepare(["psnr"])
    alone = [extras.measure("psnr", ready["psnr"], made, samples).values for made in sets]
    both = extras.measure_sets("psnr", ready["psnr"], sets, samples)
    assert both.values == pytest.approx(np.mean(alone, axis=0)) and both.values[0] != alone[0][0]

    def spread(made, true):
        return extras.Measured([float(np.var([each.mean() for each in made]))], of_set=True, notes=("few",))

    found = extras.measure_sets("fid", extras.Ready(spread), sets, samples)
    assert found.values == [pytest.approx(np.mean([spread(made, samples).values[0] for made in sets]))]
    assert found.of_set and found.notes == ("few",)


@pytest.fixture
def folders(tmp_path):
    """Three pictures; four groups "made", of which the first is perfect; and how they were made."""
    made = [tmp_path / "made" / f"group-{number}" for number in range(1, 5)]
    for name in NAMES:
        true = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save_png(true, tmp_path / "data" / "images" / f"{name}.png")
        save_png(255 - true, tmp_path / "data" / "conditions" / f"{name}.png")
        (tmp_path / "data" / "images" / f"{name}.txt").write_text("a picture")
        for number, group in enumerate(made):
            save_png(np.roll(true, 7 * number, axis=0), group / f"{name}.png")
    for group in made:
        write_json(group / "settings.json", {"steps": 20, "guidance": 3.0, "scheduler": "one"})
    return tmp_path / "data", made


def test_several_folders_are_judged_together(folders):
    data, made = folders
    options = {"data": str(data), "condition": "canny", "judging": Judging("controlnet++", metrics=["psnr"])}
    alone = [evaluate(folder, **options) for folder in made]
    both = evaluate(made, **options)
    assert both["sets"] == 4 and both["samples"] == 3 and [each["sets"] for each in alone] == [1] * 4
    assert alone[0]["fidelity"]["value"] == 1 > both["fidelity"]["value"]
    mean = np.mean([each["metrics"]["psnr"]["value"] for each in alone])
    assert both["metrics"]["psnr"]["value"] == pytest.approx(mean)
    mean = np.mean([each["per_image"]["1"]["psnr"] for each in alone])
    assert both["per_image"]["1"]["psnr"] == pytest.approx(mean)
    assert "one picture per condition (published: 4)" in alone[0]["deviations"]
    assert not [line for line in both["deviations"] if "per condition" in line], "four are as published"
    assert "2 pictures per condition (published: 4)" in evaluate(made[:2], **options)["deviations"]

    given = ["--data", data, "--condition", "canny", "--protocol", "controlnet++", "--metrics", "psnr"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, [*made, *given, "--json"])])
    assert done.exit_code == 0 and json.loads(done.stdout) == both, done.output
    table = CliRunner().invoke(app, ["evaluate", *map(str, [*made, *given])], env={"COLUMNS": "80"}).stdout
    assert "3 samples, 4 of each, protocol controlnet++/canny" in " ".join(table.split())


def test_folders_that_do_not_belong_together_are_refused(folders):
    data, made = folders
    options = {"data": str(data), "condition": "canny"}
    with pytest.raises(LisaError, match=r"group-2' and .*group-2' hold the same pictures"):
        evaluate([made[0], made[1], made[1]], **options)
    with pytest.raises(LisaError, match="there is no folder to judge"):
        evaluate([], **options)
    with pytest.raises(LisaError, match=r"there is no folder '.*/typo'"):
        evaluate([made[0], made[0].parent / "typo"], **options)
    with pytest.raises(LisaError, match=r"lacks 3 of 3 .*Judge what lies in it \(group-1 \.\.\. group-4\)"):
        evaluate(made[0].parent, **options)
    same = {"steps": 20, "guidance": 3.0, "scheduler": "one", "weights": "abc"}
    for group, spelt in zip(made, ("runs/a", "/x/runs/a", "runs/a", "runs/a"), strict=True):
        write_json(group / "settings.json", {**same, "side": spelt})
    assert evaluate(made, **options)["sets"] == 4, "the same weights, however the path to them is spelt"
    write_json(made[1] / "settings.json", {**same, "weights": "other", "side": "runs/a"})
    with pytest.raises(LisaError, match="weights is abc for"):
        evaluate(made, **options)
    for group in made:
        write_json(group / "settings.json", {"steps": 20, "guidance": 3.0, "scheduler": "one"})
    asked = {"steps": 20, "guidance": 3.0, "scheduler": "one", "solver": "as asked for"}
    write_json(made[2] / "settings.json", asked)
    assert evaluate(made, **options)["sets"] == 4, "the same scheduler, asked for or not"
    write_json(made[2] / "settings.json", {**asked, "steps": 10})
    with pytest.raises(LisaError, match=r"steps is 20 for .*group-1' and 10 for .*group-3'"):
        evaluate(made, **options)
    (made[2] / "settings.json").unlink()
    with pytest.raises(LisaError, match=r"group-1' tells in settings.json .*group-3' does not"):
        evaluate(made, **options)
    half = (made[3] / "1.png").read_bytes()[:4000]
    for content, told in ((b"no picture", "is not a readable image"), (half, "is truncated or damaged")):
        (made[3] / "1.png").write_bytes(content)
        write_json(made[3] / "settings.json", {"steps": 20, "guidance": 3.0, "scheduler": "one"})
        for judged in ({}, {"condition": "normals", "judging": Judging(metrics=["psnr"])}):
            with pytest.raises(LisaError, match=rf"group-4/1\.png'? {told}"):
                evaluate([made[0], made[3]], **{**options, **judged})
    with pytest.raises(LisaError, match="0, 0 pictures for 0 samples"):
        evaluate(made[:2], **options, count=0)
    (made[3] / "1.png").unlink()
    with pytest.raises(LisaError, match=r"group-4' lacks 1 of 3 pictures \('1'\)"):
        evaluate([made[0], made[3]], **options)


def test_scenes_that_any_folder_holds_must_be_in_all(tmp_path):
    source = ScenesSource("edges", 1, 3, 32)
    for group, count in (("group-1", 2), ("group-2", 3)):
        for number in range(count):
            save_png(
                source[number].image // (2 if group == "group-2" else 1),
                tmp_path / group / f"{source.keys[number]}.png",
            )
    groups = [tmp_path / "group-1", tmp_path / "group-2"]
    for given in (groups, groups[::-1]):
        with pytest.raises(LisaError, match=r"group-1' lacks 1 of 3 pictures"):
            evaluate(given, data="scenes", condition="edges")
    (tmp_path / "group-10").mkdir()
    with pytest.raises(LisaError, match=r"Judge what lies in it \(group-1 \.\.\. group-10\)"):
        evaluate(tmp_path, data="scenes", condition="edges")
    (tmp_path / "group-2" / f"{source.keys[2]}.png").unlink()
    assert evaluate(groups, data="scenes", condition="edges")["samples"] == 2
