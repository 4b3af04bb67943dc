"""Generating and evaluating: seeds, resuming, stale pictures, and the way from a run to its figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import lisa
import runs
from lisa.build import generation, sampling_choices
from lisa.build.evaluation import evaluate
from lisa.build.generation import GenerateOptions, generate
from lisa.common.errors import LisaError
from lisa.data.images import load_rgb, save_png
from lisa.data.sources import ScenesSource
from lisa.mains.weights import Weights
from lisa.pairs import pair_spec
from lisa.sample.pictures import Request, set_solver

FAST = {"steps": 1, "guidance": 1.0}
DRAWN_EDGES = {"data": "scenes", "condition": "edges"}


def pictures(folder):
    return {path.stem: load_rgb(path) for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def made(finished_run, tmp_path_factory):
    """All held-out samples of the run, generated one by one."""
    options = GenerateOptions(run=finished_run, out=tmp_path_factory.mktemp("made"), batch=1, **FAST)
    return options, generate(options)


@pytest.fixture
def copied(made, tmp_path):
    """The same in a folder to try things on."""
    shutil.copytree(made[0].out, tmp_path / "made")
    return replace(made[0], out=tmp_path / "made")


def refuse(options):
    before = {path: path.read_bytes() for path in options.out.rglob("*")} if options.out.is_dir() else {}
    with pytest.raises(LisaError) as caught:
        generate(options)
    assert {path: path.read_bytes() for path in options.out.rglob("*")} == before
    return str(caught.value)


def test_one_seed_per_picture_whatever_the_batch(made, tmp_path):
    one_by_one = pictures(made[0].out)
    assert made[1]["made"] == 4 and len(one_by_one) == 4
    assert len({picture.tobytes() for picture in one_by_one.values()}) == 4
    generate(replace(made[0], out=tmp_path, batch=3))
    for key, picture in pictures(tmp_path).items():
        assert np.abs(picture.astype(int) - one_by_one[key]).max() <= 1, "but for rounding"
    generate(replace(made[0], out=tmp_path / "other", seed=9, count=1))
    (other,) = pictures(tmp_path / "other").items()
    assert np.abs(other[1].astype(int) - one_by_one[other[0]]).max() > 10


def test_what_exists_is_not_made_again(copied, monkeypatch):
    victim = sorted(copied.out.glob("*.png"))[1]
    expected = victim.read_bytes()
    victim.unlink()
    times = {path: path.stat().st_mtime_ns for path in copied.out.glob("*.png")}
    said = []
    result = generate(copied, progress=said.append)
    assert (result["made"], result["kept"]) == (1, 3) and said == [f"1/1  {victim}"]
    assert victim.read_bytes() == expected
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    monkeypatch.setattr("lisa.build.generation._load_pipeline", None)  # nothing to do: nothing is loaded
    assert generate(copied)["made"] == 0


@pytest.mark.parametrize("change", [{"steps": 2}, {"guidance": 2.0}, {"scale": 0.5}, {"seed": 1}, {"prompt": "other"}])
def test_pictures_of_other_settings_are_refused(copied, change):
    message = refuse(replace(copied, **change))
    assert "was not made with these settings" in message and "--out" in message and "--overwrite" in message


def test_a_network_trained_again_is_another_one(copied, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = replace(copied, run=run, out=tmp_path / "again", count=1)
    generate(options)
    weights = run / "side_network" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "was not made with these settings" in refuse(options)


def test_overwrite_makes_them_again(copied):
    assert generate(replace(copied, seed=1, overwrite=True))["made"] == 4


def test_prompts_of_a_file_come_first(finished_run, tmp_path):
    (tmp_path / "conditions").mkdir()
    source = ScenesSource("edges", seed=1, count=2, size=32)
    for i in range(2):
        save_png(source[i].condition, tmp_path / "conditions" / f"{i}.png")
    (tmp_path / "prompts.json").write_text(json.dumps({"1": "a b c"}))
    options = GenerateOptions(
        run=finished_run,
        condition=tmp_path / "conditions",
        prompts=tmp_path / "prompts.json",
        out=tmp_path / "a",
        **FAST,
    )
    assert "there is no prompt for '0.png'" in refuse(options)
    one = generate(replace(options, prompt="x"))
    assert one["made"] == 2
    both = replace(options, prompts=None, prompt="x", out=tmp_path / "b")
    generate(both)
    first, second = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert np.array_equal(first["0"], second["0"]) and not np.array_equal(first["1"], second["1"])
    alone = replace(both, condition=tmp_path / "conditions" / "0.png", out=tmp_path / "c", run=None)
    alone = replace(alone, side=str(finished_run / "side_network"), model=str(runs_model(finished_run)))
    generate(alone)
    assert np.array_equal(pictures(tmp_path / "c")["0"], first["0"])


@pytest.fixture
def types(monkeypatch):
    """What the parts of the pipelines are that pictures are made with."""
    seen = {}

    def record(pipeline, *solver):
        parts = {name: getattr(pipeline, name).dtype for name in ("unet", "controlnet", "text_encoder", "vae")}
        seen.update({name: str(dtype).removeprefix("torch.") for name, dtype in parts.items()})
        set_solver(pipeline, *solver)

    monkeypatch.setattr(generation, "set_solver", record)
    return seen


def test_networks_run_in_the_type_that_is_asked_for(made, types, tmp_path):
    """All but the autoencoder; the pictures are nearly those of float32, and count as others."""
    generate(replace(made[0], out=tmp_path, dtype="bfloat16", count=1))
    assert types == {**dict.fromkeys(("unet", "controlnet", "text_encoder"), "bfloat16"), "vae": "float32"}
    ((key, picture),) = pictures(tmp_path).items()
    difference = np.abs(picture.astype(int) - pictures(made[0].out)[key])
    assert difference.max() > 0 and difference.mean() < 5
    assert json.loads((tmp_path / "settings.json").read_text())["dtype"] == "bfloat16"
    assert "was not made with these settings" in refuse(replace(made[0], out=tmp_path, count=1))


def test_a_run_in_16_bits_is_sampled_in_them(finished_run, types, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert "mixed_precision: 'no'" in text
    (run / "config.yaml").write_text(text.replace("mixed_precision: 'no'", "mixed_precision: bf16"))
    generate(GenerateOptions(run=run, out=tmp_path / "a", count=1, **FAST))
    assert types["unet"] == "bfloat16"
    generate(GenerateOptions(run=run, out=tmp_path / "b", count=1, dtype="float32", **FAST))
    assert types["unet"] == "float32"


def test_types_that_cannot_be(made, tmp_path):
    assert "unknown type 'bf16'" in refuse(replace(made[0], out=tmp_path / "x", dtype="bf16"))
    with pytest.raises(LisaError, match=r"flux-controlnet leaves float16's range.*--dtype bfloat16"):
        sampling_choices.choose_dtype("float16", pair_spec("flux-controlnet"), [])


def test_sampling_as_another_protocol_has_it(made, tmp_path):
    """It is told beside the pictures, and pictures made otherwise are others."""
    asked = replace(made[0], out=tmp_path, count=1, guidance=3.0, solver="unipc", negative_prompt="a b")
    generate(asked)
    told = json.loads((tmp_path / "settings.json").read_text())
    assert (told["scheduler"], told["negative_prompt"]) == ("UniPCMultistepScheduler", "a b")
    for other in ({"solver": "dpm++"}, {"negative_prompt": "a"}):
        assert "was not made with these settings" in refuse(replace(asked, **other))
    assert "at guidance 1 makes no difference" in refuse(replace(made[0], out=tmp_path / "x", negative_prompt="a"))
    assert "unknown solver 'x'" in refuse(replace(made[0], out=tmp_path / "x", solver="x"))
    with pytest.raises(LisaError, match="FluxControlNetPipeline makes no use of a negative prompt"):
        sampling_choices.check_sampling("unipc", "a", 3.0, pair_spec("flux-controlnet"))


@pytest.fixture
def quantised_run(finished_run, tmp_path):
    """As if it had been trained beside a main network in 4 bits."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    for old, new in (("mixed_precision: 'no'", "mixed_precision: bf16"), ("quantize: none", "quantize: nf4")):
        assert old in text
        text = text.replace(old, new)
    (run / "config.yaml").write_text(text)
    return run


def test_a_run_in_4_bits_is_sampled_in_them_where_that_can_be(quantised_run, types, tmp_path, monkeypatch):
    said = []
    generate(GenerateOptions(run=quantised_run, out=tmp_path / "a", count=1, **FAST), progress=said.append)
    assert "in nf4; here it is read as it is: model.quantize=nf4 " in said[0] and types["unet"] == "bfloat16"
    assert "quantize" not in json.loads((tmp_path / "a" / "settings.json").read_text())

    told = []
    monkeypatch.setattr(sampling_choices, "check_quantized", lambda quantize, source: None)
    monkeypatch.setattr(generation, "_load_pipeline", lambda *given: told.append(given[-1]) or 1 / 0)
    for asked in (None, "int8", "none"):
        with pytest.raises(ZeroDivisionError):
            generate(GenerateOptions(run=quantised_run, out=tmp_path / "b", quantize=asked, **FAST))
    assert told == [Weights(torch.bfloat16, kind) for kind in ("nf4", "int8", "none")]


def test_quantised_networks_that_cannot_be(made, quantised_run, tmp_path, monkeypatch):
    assert "nf4 " in refuse(GenerateOptions(run=quantised_run, out=tmp_path / "x", quantize="nf4"))
    assert "unknown quantisation 'fp4'" in refuse(replace(made[0], out=tmp_path / "x", quantize="fp4"))
    monkeypatch.setattr(sampling_choices, "check_quantized", lambda quantize, source: None)
    assert "--quantize nf4 computes in 16 bits" in refuse(replace(made[0], out=tmp_path / "x", quantize="nf4"))


def runs_model(run):
    return json.loads((run / "summary.json").read_text())["model"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run": "nowhere"}, "'{tmp}/nowhere' is not a run folder"),
        ({"run": None}, "no side network was named"),
        ({"run": None, "side": "nowhere"}, "no main network was named"),
        ({"condition": "nowhere.png"}, "there is no condition image or folder '{tmp}/nowhere.png'"),
        ({"condition": "empty"}, "there are no pictures in '{tmp}/empty'"),
        ({"condition": "twins"}, "holds two pictures named 'a'"),
        ({"condition": "broken"}, "'{tmp}/broken/a.png' is not a readable image"),
        ({"condition": "sizes"}, "condition 'b' is 36x32 pixels, 'a' is 32x32"),
        ({"condition": "odd"}, "condition 'a' is 30x32 pixels. Both sides must be multiples of 4"),
        ({"prompts": "nowhere.json"}, "there is no file '{tmp}/nowhere.json'"),
        ({"prompts": "list.json"}, "'{tmp}/list.json' is not a mapping"),
        ({"out": "a_file"}, "'{tmp}/a_file' is a file"),
    ],
)
def test_refused(finished_run, tmp_path, change, expected):
    picture = np.zeros((32, 36, 3), np.uint8)
    for name, width in {"twins/a.png": 32, "sizes/a.png": 32, "sizes/b.png": 36, "odd/a.png": 30}.items():
        save_png(picture[:, :width], tmp_path / name)
    shutil.copy(tmp_path / "twins/a.png", tmp_path / "twins/a.bmp")
    for name, content in {"empty/x.txt": "", "broken/a.png": "no", "list.json": "[]", "a_file": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    paths = {k: tmp_path / v if v and k != "side" else v for k, v in change.items()}
    options = GenerateOptions(**{"run": finished_run, "out": tmp_path / "out", "prompt": "x", **FAST, **paths})
    with pytest.raises(LisaError) as caught:
        generate(options)
    assert expected.replace("{tmp}", str(tmp_path)) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_evaluating_what_was_generated_gives_the_runs_own_fidelity(made, finished_run):
    """The same pictures by two ways: the summary's from memory, these from files."""
    summary = json.loads((finished_run / "summary.json").read_text())
    result = evaluate(made[0].out, run=finished_run, count=2)
    ours, theirs = result["fidelity"]["value"], summary["fidelity"]["with"]["value"]
    assert ours == pytest.approx(theirs, abs=0.02), "batches of another size round differently"
    assert result["protocol"] == "scenes/edges" and result["samples"] == 2
    assert evaluate(made[0].out, run=finished_run)["samples"] == 4
    assert lisa.evaluate(made[0].out, run=finished_run, count=2)["fidelity"] == result["fidelity"]


def test_generated_scenes_are_judged_by_their_names(made, finished_run, tmp_path):
    """Without the run: the names tell the stream and the numbers, the pictures their size."""
    by_run, by_name = (evaluate(made[0].out, **where) for where in ({"run": finished_run}, DRAWN_EDGES))
    assert by_name["per_image"] == by_run["per_image"] and by_name["samples"] == 4
    assert "judged are the 4 scenes that there are files of; --run tells which ought to be" in by_name["notes"]
    name = sorted(by_name["per_image"])[0]
    shutil.copytree(made[0].out, tmp_path / "two")
    shutil.copy(made[0].out / f"{name}.png", tmp_path / "two" / "scene-7-0000001.png")
    with pytest.raises(LisaError, match=r"holds scenes of several streams \(1, 7\).*scene-1-0000000"):
        evaluate(tmp_path / "two", **DRAWN_EDGES)
    with pytest.raises(LisaError, match="scenes are square, not 36x32 pixels"):
        evaluate(made[0].out, **DRAWN_EDGES, size=(32, 36))


def test_several_pictures_per_condition_are_made_and_judged_together(made, finished_run, tmp_path):
    """The first are those that one per condition would be; the others have seeds of their own."""
    options = replace(made[0], out=tmp_path / "made", per_condition=2, count=2)
    said = []
    assert generate(options, progress=said.append)["made"] == 4 and said[-1].startswith("4/4  ")
    groups = [options.out / "group-1", options.out / "group-2"]
    first, second = (pictures(folder) for folder in groups)
    assert first.keys() == second.keys() and all((first[key] == pictures(made[0].out)[key]).all() for key in first)
    assert len({each.tobytes() for each in (*first.values(), *second.values())}) == 4
    told = [json.loads((folder / "settings.json").read_text()) for folder in groups]
    assert told[0] == told[1] and told[0]["weights"] and not (options.out / "settings.json").exists()
    again = generate(replace(options, count=None, per_condition=3))
    assert (again["made"], again["kept"]) == (8, 4), "more of them leave the others as they are"
    given = {"run": finished_run, "count": 2}
    alone, both = [evaluate(folder, **given)["fidelity"]["value"] for folder in groups], evaluate(groups, **given)
    assert both["fidelity"]["value"] == pytest.approx(np.mean(alone)) and both["sets"] == 2
    assert evaluate(groups, **DRAWN_EDGES)["samples"] == 4
    with pytest.raises(LisaError, match="--per-condition is 0"):
        generate(replace(options, per_condition=0))


def test_no_two_pictures_share_a_seed():
    """Neither of one condition nor of two, whose seeds are neighbours."""
    requests = [Request(str(number), "", np.zeros((8, 8, 3), np.uint8), number) for number in range(50)]
    wanted = generation._several(requests, 4)
    assert len({request.seed for request in wanted}) == len({request.key for request in wanted}) == 200
    assert generation._several(requests, 1) == requests


def test_a_missing_picture_is_an_error_that_names_it(copied, finished_run):
    victim = sorted(copied.out.glob("*.png"))[2]
    victim.unlink()
    with pytest.raises(LisaError, match=rf"lacks 1 of 4 pictures \('{victim.stem}'\)"):
        evaluate(copied.out, run=finished_run)


def test_evaluation_crops_as_the_training_did(sd_small, tmp_path):
    """Random crops: the truth that is compared with must be the very crop whose condition was followed."""
    source = ScenesSource("edges", seed=1, count=6, size=48)
    for i in range(6):
        save_png(source[i].image, tmp_path / "data" / "images" / f"{i}.png")
        save_png(source[i].condition, tmp_path / "data" / "conditions" / f"{i}.png")
    run = tmp_path / "run"
    run.mkdir()
    raw = runs.settings(
        run, sd_small, data__source=str(tmp_path / "data"), data__crop="random", data__condition="lowres"
    )
    raw["data"].update(default_caption="a", held_out=3, size=[32, 40])
    (run / "config.yaml").write_text(json.dumps(raw))
    from lisa.build import parts
    from lisa.build.generation import read_run

    opened = parts.open_data(read_run(run).data, 0)
    samples = parts.Still(opened.held_out, opened.transform)
    for i in range(3):
        save_png(samples[i].image, tmp_path / "perfect" / f"{samples[i].key}.png")
    result = evaluate(tmp_path / "perfect", run=run)
    assert result["metrics"]["ssim"]["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "needs one of --run and --data"),
        ({"run": "x", "data": "scenes"}, "needs one of --run and --data"),
        ({"data": "scenes"}, "--data needs --condition"),
        ({"data": "scenes", "condition": "canny"}, "unknown condition to evaluate on scenes 'canny'. Choices: edges"),
        (DRAWN_EDGES, "holds none of scenes. Name files as the scenes are, of one stream: scene-1-0000000"),
        ({"data": "/nowhere/at/all", "condition": "canny"}, "there is no folder '/nowhere/at/all'"),
        ({"run": "/nowhere"}, "'/nowhere' is not a run folder"),
    ],
)
def test_evaluation_refused(tmp_path, options, expected):
    with pytest.raises(LisaError) as caught:
        evaluate(tmp_path, **options)
    assert expected in str(caught.value)
