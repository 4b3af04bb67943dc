"""Several pictures per sample: figures are means over the sets, intervals are over the samples."""

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
from lisa.evaluate.pooled import pooled, single
from lisa.evaluate.runner import evaluate_images

RNG = np.random.default_rng(0)
NAMES = ["0", "1", "2"]


def test_pooled_figures_are_means_over_sets_and_resample_their_samples_together():
    """Of two sets that complement each other sample by sample the mean is one half in every resample."""
    hits = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    one, other = [single(hit) for hit in hits], [single(1 - hit) for hit in hits]
    both = pooled([*one, *other], sets=2)
    assert (both.value, both.low, both.high) == (0.5, 0.5, 0.5)
    assert pooled([*one, *one], sets=2) == pooled(one), "twice the same tells nothing more"
    assert pooled([*one, *other]).low < 0.4, "as so many samples of one set it would not be"
    uneven = [single(1, 1), single(0, 3), single(4, 4), single(0, 0)]
    assert pooled(uneven, sets=2).value == (1 / 4 + 4 / 4) / 2, "each set's own ratio of sums; of all it is 5 / 8"


def test_a_published_protocol_over_two_sets():
    class Segments:
        classes = 2

        def __call__(self, image):
            return image[..., 0].astype(np.int64)

    def picture(*classes):
        return np.repeat(np.asarray([classes], np.uint8)[..., None], 3, -1)

    samples = [Sample("a", picture(0, 0, 1, 1), None, ""), Sample("b", picture(0, 0, 0, 0), None, "")]
    right, wrong = [s.image for s in samples], [picture(0, 0, 0, 1), picture(0, 0, 0, 1)]
    protocol = published.find("lisa", "segmentation")
    alone = [published.evaluate(protocol, Segments(), made, samples) for made in (right, wrong)]
    both = published.evaluate(protocol, Segments(), [*right, *wrong], samples, sets=2)
    assert alone[1]["fidelity"]["value"] == pytest.approx((5 / 7 + 1 / 3) / 2)
    assert both["fidelity"]["value"] == pytest.approx((1 + (5 / 7 + 1 / 3) / 2) / 2) and both["samples"] == 2
    for key in "ab":
        expected = np.mean([each["per_image"][key]["miou"] for each in alone])
        assert both["per_image"][key]["miou"] == pytest.approx(expected)
    with pytest.raises(LisaError, match="4 pictures for 2 samples: there must be as many"):
        published.evaluate(protocol, Segments(), [*right, *wrong], samples)
    with pytest.raises(LisaError, match="3 pictures for 2 samples in 2 sets"):
        published.evaluate(protocol, Segments(), right + wrong[:1], samples, sets=2)


def test_own_protocols_over_two_sets():
    source = ScenesSource("edges", seed=4, count=6)
    samples = [source[i] for i in range(6)]
    right, turned = [s.image for s in samples], [s.image[::-1] for s in samples]
    alone = [evaluate_images(made, samples, "edges") for made in (right, turned)]
    both = evaluate_images([*right, *turned], samples, "edges", sets=2)
    for sample in samples:
        values = [each["per_image"][sample.key]["edge_f1"] for each in alone]
        assert both["per_image"][sample.key]["edge_f1"] == np.mean(values) and values[0] > values[1]
    assert both["samples"] == 6 and both["fidelity"]["value"] == pytest.approx(
        np.mean([each["fidelity"]["value"] for each in alone])
    )
    assert evaluate_images([*right, *right], samples, "edges", sets=2) == alone[0]


def test_other_metrics_over_two_sets():
    """Per picture the mean of both; of a set the mean of the two distances, not that of all pictures together."""
    pictures = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(6)]
    samples = [Sample(str(i), picture, None, "") for i, picture in enumerate(pictures[:3])]
    ready, _ = extras.prepare(["psnr"])
    alone = [extras.measure("psnr", ready["psnr"], made, samples).values for made in (pictures[:3], pictures[3:])]
    both = extras.measure("psnr", ready["psnr"], pictures, samples, 2)
    assert both.values == pytest.approx(np.mean(alone, axis=0)) and both.values[0] != alone[0][0]

    def spread(made, true):
        return extras.Measured([float(np.var([each.mean() for each in made]))], of_set=True, notes=("few",))

    of_sets = [spread(made, samples).values[0] for made in (pictures[:3], pictures[3:])]
    found = extras.measure("fid", extras.Ready(spread), pictures, samples, 2)
    assert found.values == [pytest.approx(np.mean(of_sets))] and found.of_set and found.notes == ("few",)


@pytest.fixture
def folders(tmp_path):
    """Three pictures; four sets "made", of which the first is perfect; and how they were made."""
    for name in NAMES:
        picture = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save_png(picture, tmp_path / "data" / "images" / f"{name}.png")
        save_png(255 - picture, tmp_path / "data" / "conditions" / f"{name}.png")
        (tmp_path / "data" / "images" / f"{name}.txt").write_text("a picture")
        for number in range(4):
            save_png(np.roll(picture, 7 * number, axis=0), tmp_path / "made" / str(number) / f"{name}.png")
    for number in range(4):
        write_json(tmp_path / "made" / str(number) / "settings.json", {"steps": 20, "guidance": 3.0})
    return tmp_path / "data", [tmp_path / "made" / str(number) for number in range(4)]


def test_several_folders_are_judged_together(folders):
    data, made = folders
    options = {"data": str(data), "condition": "canny", "judging": Judging("controlnet++", metrics=["psnr"])}
    alone = [evaluate(folder, **options) for folder in made]
    both = evaluate(made, **options)
    assert both["sets"] == 4 and both["samples"] == 3 and [each["sets"] for each in alone] == [1] * 4
    assert alone[0]["fidelity"]["value"] == 1 > both["fidelity"]["value"]
    for figure in ("pixel_f1", "psnr"):
        mean = np.mean([each["metrics"][figure]["value"] for each in alone])
        assert both["metrics"][figure]["value"] == pytest.approx(mean)
        mean = np.mean([each["per_image"]["1"][figure] for each in alone])
        assert both["per_image"]["1"][figure] == pytest.approx(mean)
    assert "one picture per condition (published: 4)" in alone[0]["deviations"]
    assert not [line for line in both["deviations"] if "per condition" in line], "four are as published"
    assert "2 pictures per condition (published: 4)" in evaluate(made[:2], **options)["deviations"]

    given = ["--data", data, "--condition", "canny", "--protocol", "controlnet++", "--metrics", "psnr"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, [*made, *given, "--json"])])
    assert done.exit_code == 0 and json.loads(done.stdout) == both, done.output
    table = CliRunner().invoke(app, ["evaluate", *map(str, [*made, *given])], env={"COLUMNS": "80"}).stdout
    assert "3 samples, 4 pictures of each, protocol controlnet++/canny" in " ".join(table.split())


def test_folders_that_do_not_belong_together_are_refused(folders):
    data, made = folders
    options = {"data": str(data), "condition": "canny"}
    with pytest.raises(LisaError, match=r"made/1' and .*made/1' hold the same pictures"):
        evaluate([made[0], made[1], made[1]], **options)
    with pytest.raises(LisaError, match="there is no folder to judge"):
        evaluate([], **options)
    write_json(made[2] / "settings.json", {"steps": 10, "guidance": 3.0})
    with pytest.raises(LisaError, match=r"steps is 20 for .*made/0' and 10 for .*made/2'"):
        evaluate(made, **options)
    (made[2] / "settings.json").unlink()
    with pytest.raises(LisaError, match=r"made/0' tells in settings.json .*made/2' does not"):
        evaluate(made, **options)
    (made[3] / "1.png").unlink()
    with pytest.raises(LisaError, match=r"made/3' lacks 1 of 3 pictures \('1'\)"):
        evaluate([made[0], made[3]], **options)
