"""``lisa evaluate`` by published protocols: from folders to the result and the exit code."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tiny_readers
from lisa.build.evaluation import Judging, _is_lossy, evaluate
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.common.files import write_json
from lisa.data.images import save_png


@pytest.fixture
def folders(tmp_path):
    """Three pictures with captions; a folder of pictures "made" that are the same; and how they were made."""
    rng = np.random.default_rng(0)
    for i in range(3):
        picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save_png(picture, tmp_path / "data" / "images" / f"{i}.png")
        save_png(255 - picture, tmp_path / "data" / "conditions" / f"{i}.png")
        (tmp_path / "data" / "images" / f"{i}.txt").write_text(f"picture {i}")
        save_png(picture, tmp_path / "made" / f"{i}.png")
    write_json(tmp_path / "made" / "settings.json", {"steps": 20, "guidance": 3.0})
    return tmp_path / "data", tmp_path / "made"


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.mark.parametrize("family", ["lisa", "controlnet++"])
def test_depth_of_equal_pictures_is_perfect_and_the_record_exact(folders, tmp_path, family):
    data, made = folders
    reader = tiny_readers.depth(tmp_path / "reader")
    options = ["--data", data, "--condition", "depth", "--protocol", family, "--extractor", reader]
    done = invoke(made, *options, "--metrics", "psnr", "--json", "--out", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"] == f"{family}/depth" and result["fidelity"] == {"value": 1, "low": 1, "high": 1}
    (used,) = result["extractors"]
    assert used["source"] == str(reader) and re.fullmatch(r"content:[0-9a-f]+", used["revision"])
    assert result["metrics"]["psnr"]["value"] == 60 and result["per_image"]["1"]["psnr"] == 60
    assert result["not_run"] == {} and result["notes"] == []
    expected = ["extractor"]
    if family != "lisa":
        expected = ["true depth", *expected, "64x64 pixels", "guidance 3.0", "UniPC", "worst quality", "one picture"]
    assert all(word in line for word, line in zip(expected, result["deviations"], strict=True))
    table = invoke(made, *options).stdout
    assert "1.000 [1.000, 1.000]" in table and "not as published: extractor" in table and used["revision"] in table


def test_segmentation_against_the_datas_own_labels(folders, tmp_path):
    """Labels that are what the network reads off the picture, one higher as ADE20K's, in part void: all right."""
    from lisa.evaluate.extractors.segmentation import SegmentationReader
    from lisa.evaluate.extractors.weights import locate

    data, made = folders
    folder = tiny_readers.mask2former(tmp_path / "reader")
    reader = SegmentationReader(locate(str(folder)))
    for i in range(3):
        labels = (reader(np.asarray(Image.open(data / "images" / f"{i}.png"))) + 1).astype(np.uint8)
        labels[:8] = 0
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{i}.png")
    judging = Judging("controlnet++", extractor=str(folder), labels=tmp_path / "labels")
    given = {"data": str(data), "condition": "segmentation"}
    assert evaluate(made, **given, judging=judging)["fidelity"]["value"] == 1
    Image.fromarray(255 - np.asarray(Image.open(made / "1.png"))).save(made / "1.png")
    assert evaluate(made, **given, judging=judging)["fidelity"]["value"] < 1
    for i in range(3):  # from 7 on, which must be said
        labels = np.asarray(Image.open(tmp_path / "labels" / f"{i}.png"))
        Image.fromarray(labels + 6).save(tmp_path / "labels" / f"{i}.png")
    shutil.rmtree(made)
    shutil.copytree(data / "images", made)
    with pytest.raises(LisaError, match=r"png' holds \d, but 3 classes from 1 on end at 3"):
        evaluate(made, **given, judging=judging)
    options = ["--data", data, "--condition", "segmentation", "--protocol", "controlnet++", "--extractor", folder]
    done = invoke(made, *options, "--labels", tmp_path / "labels", "--labels-start", 7, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["fidelity"]["value"] == 1, done.output
    for wrong in (replace(judging, labels_start=255), Judging("lisa", labels_start=1)):
        with pytest.raises(LisaError, match=r"labels_start is \d+, .*0\.\.254, for a protocol that judges by label"):
            evaluate(made, **given, judging=wrong)
    with pytest.raises(LisaError, match=r"judges by the data's own label maps.*--labels"):
        evaluate(made, **given, judging=Judging("controlnet++", extractor=str(folder)))
    with pytest.raises(LisaError, match=r"lisa/segmentation uses no label maps"):
        evaluate(made, **given, judging=Judging("lisa", extractor=str(folder), labels=tmp_path))


def test_offline_what_needs_no_weights_still_runs(folders, tmp_path, monkeypatch):
    """Exit code 2 and one message each; without anything else to run, the message alone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "lpips", None)
    data, made = folders
    options = ["--data", data, "--condition", "depth", "--protocol", "controlnet++"]
    done = invoke(made, *options, "--metrics", "ssim,lpips,clip_score", "--json")
    assert done.exit_code == 2
    result = json.loads(done.stdout)
    assert list(result["metrics"]) == ["ssim"] and result["metrics"]["ssim"]["value"] == pytest.approx(1)
    assert result["fidelity"]["value"] is None and set(result["not_run"]) == {"lpips", "clip_score", "fidelity"}
    assert "error: fidelity could not be run: the weights 'Intel/dpt-large' are not on this disk" in done.stderr
    assert "openai/clip-vit-base-patch16" in result["not_run"]["clip_score"]
    table = invoke(made, *options, "--metrics", "ssim")
    assert table.exit_code == 2 and "fidelity (1 - depth_rmse_255 / 255)" in table.stdout and " - " in table.stdout
    with pytest.raises(LisaError, match=r"'Intel/dpt-large' are not on this disk"):
        evaluate(made, data=str(data), condition="depth", judging=Judging("controlnet++"))
    lowres = invoke(made, "--data", data, "--condition", "lowres", "--protocol", "lisa", "--json")
    assert lowres.exit_code == 2 and json.loads(lowres.stdout)["fidelity"]["value"] == 60, "PSNR without LPIPS"


def test_metrics_that_fail_on_these_pictures_leave_the_rest(folders, tmp_path):
    """One picture without words: no caption to score, no distance of sets; depth and PSNR are there, exit code 2."""
    data, made = folders
    (data / "images" / "0.txt").unlink()
    options = ["--data", data, "--condition", "depth", "--protocol", "lisa", "--count", 1, "--json"]
    options += ["--extractor", tiny_readers.depth(tmp_path / "reader"), "--clip", tiny_readers.clip(tmp_path / "clip")]
    done = invoke(made, *options, "--metrics", "clip_score,fid_clip,psnr", "--out", tmp_path / "result.json")
    assert done.exit_code == 2, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["fidelity"]["value"] == 1 and set(result["metrics"]) == {"depth_rmse", "psnr"}
    assert set(result["not_run"]) == {"clip_score", "fid_clip"} and result["per_image"]["0"]["psnr"] == 60
    assert "error: clip_score could not be run: clip_score needs captions; 1 samples" in done.stderr
    assert "of 1 and 1 pictures" in result["not_run"]["fid_clip"]


def test_conditions_that_no_protocol_judges_have_the_other_metrics(folders):
    data, made = folders
    options = ["--data", data, "--condition", "normals"]
    assert isinstance(invoke(made, *options).exception, LisaError), "nothing is left to judge by"
    done = invoke(made, *options, "--metrics", "psnr,ssim", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["fidelity"]["value"] is None and result["metrics"].keys() == {"psnr", "ssim"}
    assert result["metrics"]["psnr"]["value"] == 60 and result["per_image"]["2"]["ssim"] == 1
    assert "note: no fidelity: unknown condition to evaluate on pictures 'normals'" in done.stderr
    assert "ssim" in invoke(made, *options, "--metrics", "ssim").stdout


def test_jpeg_is_judged_and_said(folders):
    data, made = folders
    assert not any("JPEG" in note for note in evaluate(made, data=str(data), condition="canny")["notes"])
    for i in (0, 2):
        Image.open(made / f"{i}.png").save(made / f"{i}.jpg")
        (made / f"{i}.png").unlink()
    result = evaluate(made, data=str(data), condition="canny")
    assert "JPEG pictures (2 of 3) are judged with their losses: save PNG" in result["notes"]


def test_jpeg_frames_are_said(tmp_path):
    for suffix in (".png", ".jpg"):
        for frame in range(2):
            (tmp_path / suffix / "clip").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / suffix / "clip" / f"{frame}{suffix}")
    assert [_is_lossy(tmp_path / suffix / "clip") for suffix in (".png", ".jpg")] == [False, True]
    assert _is_lossy(tmp_path / "a.jpeg") and not _is_lossy(tmp_path / "a.mp4")


def test_own_protocols_take_metrics_and_refuse_what_they_do_not_use(folders, tmp_path):
    data, made = folders
    result = evaluate(made, data=str(data), condition="canny", judging=Judging(metrics=["psnr"]))
    assert result["protocol"] == "pictures/canny" and set(result["metrics"]) == {"edge_f1", "psnr"}
    assert "deviations" not in result and result["per_image"]["0"].keys() == {"edge_f1", "fidelity", "psnr"}
    with pytest.raises(
        LisaError, match=r"extractor, labels, labels_start: only published protocols use that.*Choices: lisa"
    ):
        evaluate(made, data=str(data), condition="canny", judging=Judging(extractor="x", labels="y", labels_start=1))
    with pytest.raises(LisaError, match="unknown condition of the protocol lisa 'canny'"):
        evaluate(made, data=str(data), condition="canny", judging=Judging("lisa"))
    (made / "2.png").unlink()
    with pytest.raises(LisaError, match=r"lacks 1 of 3 pictures \('2'\)"):
        evaluate(made, data=str(data), condition="lowres", judging=Judging("lisa"))
