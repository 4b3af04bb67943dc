"""Clips are generated as pictures are: for held-out samples or given conditions, stamped, and judged."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import lisa
import runs
from conformance import tiny_animatediff, tiny_svd, tiny_wan
from lisa.build import generation, parts
from lisa.build.chosen import choose_sides, read_run
from lisa.build.evaluation import Judging, evaluate
from lisa.build.generation import GenerateOptions, generate
from lisa.build.requests import file_requests
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.data.images import save_png
from lisa.data.video import ClipInfo, read_frames
from lisa.pairs import pair_spec
from videos import write_video

FRAMES = 3
FAST = {"steps": 1, "guidance": 1.0}
CLIPS = {"data__source": "moving-scenes", "data__frames": FRAMES, "data__scenes": 6, "data__held_out": 2}


def trained(folder, pair, make, **changes):
    few = {**CLIPS, "log__samples": 1, "train__batch_size": 1}
    raw = runs.settings(folder / "run", make(folder / "model"), **{**few, **changes})
    raw["model"]["pair"] = pair
    raw["train"]["steps"] = 1
    lisa.train(raw, quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("text"), "animatediff-controlnet", tiny_animatediff.make_folder)


@pytest.fixture(scope="module")
def frame_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("frame"), "svd-controlnet", tiny_svd.make_folder, data__frame_rate=12.0)


def test_a_branch_in_16_bits_keeps_in_float32_what_its_class_keeps(tmp_path, monkeypatch):
    changes = {"data__frames": 5, "side__depth": 2, "align__enabled": False}
    run = trained(tmp_path, "wan-vace", tiny_wan.make_folder, **changes)
    seen = {}

    def record(pipeline, *solver):
        seen.update({name: value.dtype for name, value in pipeline.transformer.named_parameters()})
        set_solver(pipeline)

    set_solver = generation.set_solver
    monkeypatch.setattr(generation, "set_solver", record)
    assert generate(GenerateOptions(run=run, out=tmp_path / "made", dtype="bfloat16", count=1, **FAST))["made"] == 1
    branch = {name: dtype for name, dtype in seen.items() if name.startswith("vace_blocks")}
    kept = {name for name, dtype in branch.items() if dtype == torch.float32}
    assert kept == {name for name in branch if ".norm2." in name or "scale_shift_table" in name} and kept
    assert {branch[name] for name in branch.keys() - kept} == {torch.bfloat16}


def clips(folder):
    return {path.name: read_frames(path, range(FRAMES)) for path in sorted(folder.iterdir()) if path.is_dir()}


def held_out(run):
    config = read_run(run)
    data = parts.open_data(config.data, config.seed)
    still = parts.Still(data.held_out, data.transform)
    return [still[i] for i in range(len(still))]


def refuse(options):
    with pytest.raises(LisaError) as caught:
        generate(options)
    return str(caught.value)


def test_held_out_clips_from_the_run_to_the_figures(text_run, tmp_path, monkeypatch):
    options = GenerateOptions(run=text_run, out=tmp_path / "made", **FAST)
    assert generate(options)["made"] == 2
    made, samples = clips(options.out), held_out(text_run)
    assert list(made) == sorted(sample.key for sample in samples)
    assert all(clip.shape == (FRAMES, 32, 32, 3) for clip in made.values())
    for key, clip in made.items():
        with Image.open(options.out / f"{key}.webp") as moving:
            assert moving.n_frames == FRAMES and np.array_equal(np.asarray(moving.convert("RGB")), clip[0])

    result = evaluate(options.out, run=text_run, judging=Judging(metrics=["psnr", "fvd"]))
    assert result["samples"] == 2 and result["protocol"] == "scenes/edges/frames"
    assert {"edge_f1", "flicker", "warping_error", "psnr"} == result["metrics"].keys()
    from lisa.evaluate.metrics.psnr_ssim import psnr

    for sample in samples:
        each = [psnr(one, other) for one, other in zip(sample.image, made[sample.key], strict=True)]
        assert result["per_image"][sample.key]["psnr"] == pytest.approx(np.mean(each))
    assert "fvd" in result["not_run"], "its package is none of the tests'"
    named = evaluate(options.out, data="moving-scenes", condition="edges", judging=Judging(metrics=["psnr"]))
    assert named["per_image"] == result["per_image"], "the names tell which scenes"
    with pytest.raises(LisaError, match=r"the protocol lisa is of pictures, these are clips.*--protocol own"):
        evaluate(options.out, run=text_run, judging=Judging(protocol="lisa"))

    table = CliRunner().invoke(app, ["evaluate", str(options.out), "--run", str(text_run)])
    assert table.exit_code == 0 and "flicker" in table.output and "scenes/edges/frames" in table.output

    victim = options.out / samples[0].key
    (victim / "0001.png").unlink()  # not whole: it is made again only when that is asked for
    assert "was not made with these settings" in refuse(options)
    shutil.rmtree(victim)
    assert generate(options)["made"] == 1
    assert np.array_equal(clips(options.out)[victim.name], made[victim.name])
    monkeypatch.setattr("lisa.build.generation._load_pipeline", None)  # nothing to do: nothing is loaded
    assert generate(options)["kept"] == 2
    for change in ({"steps": 2}, {"prompt": "other"}, {"seed": 1}):
        assert "was not made with these settings" in refuse(replace(options, **change))
    assert "--image is for clips that go on from a picture" in refuse(replace(options, image=tmp_path))


@pytest.mark.parametrize("run", ["text_run", "frame_run"])
def test_large_frames_are_decoded_some_at_a_time(run, tmp_path, monkeypatch, request):
    """No more pixels at once than an autoencoder is given in training."""
    decoded, record = [], generation.set_solver

    def watched(pipeline, *solver):
        decode = pipeline.vae.decode
        pipeline.vae.decode = lambda part, **more: decoded.append(len(part)) or decode(part, **more)
        record(pipeline)

    monkeypatch.setattr(generation, "set_solver", watched)
    monkeypatch.setattr("lisa.core.frames._PIXELS", 2 * 32 * 32)
    generate(GenerateOptions(run=request.getfixturevalue(run), out=tmp_path / "made", count=1, **FAST))
    assert decoded == [2, 1]


def test_conditions_and_first_frames_that_are_given(frame_run, tmp_path):
    """The held-out samples' own, longer by a frame, give the held-out clips; and one clip alone is the same."""
    samples = held_out(frame_run)
    for place, sample in enumerate(samples):
        for number, frame in enumerate([*sample.condition, sample.condition[0]]):
            save_png(frame, tmp_path / "conditions" / f"{place}" / f"{number}.png")
        save_png(sample.image[0], tmp_path / "frames" / f"{place}.png")
    held = GenerateOptions(run=frame_run, out=tmp_path / "held", **FAST)
    generate(held)
    options = replace(held, condition=tmp_path / "conditions", out=tmp_path / "given")
    assert "goes on from a picture. Give it with --image" in refuse(options)
    options = replace(options, image=tmp_path / "frames")
    assert generate(options)["made"] == 2
    ours, theirs = clips(options.out), clips(held.out)
    for place, sample in enumerate(samples):
        assert np.array_equal(ours[f"{place}"], theirs[sample.key])
    assert json.loads((options.out / "settings.json").read_text())["steps"] == 1
    key, given = "0", {"condition": tmp_path / "conditions" / "0", "image": tmp_path / "frames" / "0.png"}
    one = replace(options, **given, out=tmp_path / "one")
    arguments = ["--run", frame_run, "--condition", one.condition, "--image", one.image, "--out", one.out]
    done = CliRunner().invoke(app, ["generate", *map(str, arguments), "--steps", "1", "--guidance", "1"])
    assert done.exit_code == 0 and "1 made, 0 kept" in done.output, done.output
    assert np.array_equal(clips(one.out)[key], ours[key])
    other = replace(one, image=tmp_path / "frames" / "1.png")
    assert "was not made with these settings" in refuse(other), "the first frame is part of the stamp"
    said = []
    generate(replace(other, out=tmp_path / "other"), said.append)
    assert not np.array_equal(clips(tmp_path / "other")[key], ours[key])
    assert len(said) == 1, "as many frames as in training: nothing to remark"
    (one.condition / "3.png").unlink()
    (one.condition / "2.png").unlink()
    generate(replace(one, out=tmp_path / "short"), said.append)
    assert "1 of 1 conditions give fewer frames than the 3 of training: '0' gives 2, and so many will be made" in said
    assert len(list((tmp_path / "short" / key).iterdir())) == 2


def test_a_video_as_condition_and_a_video_that_is_judged(frame_run, tmp_path):
    """It gives what a folder of its frames gives: of 24 per second every second one, the run's rate being 12."""
    (sample, _) = held_out(frame_run)
    video = write_video(tmp_path / "a.mp4", [each for each in sample.condition for _ in range(2)], rate=24)
    save_png(sample.image[0], tmp_path / "first.png")
    for number, frame in enumerate(read_frames(video, range(0, 2 * FRAMES, 2))):
        save_png(frame, tmp_path / "frames" / "a" / f"{number}.png")
    made = {}
    for name, given in (("video", video), ("folder", tmp_path / "frames" / "a")):
        out = tmp_path / name
        options = GenerateOptions(run=frame_run, condition=given, image=tmp_path / "first.png", out=out, **FAST)
        assert generate(options)["made"] == 1
        (made[name],) = clips(out).values()
    assert np.array_equal(made["video"], made["folder"])

    (tmp_path / "videos").mkdir()
    for each in held_out(frame_run):
        file = write_video(tmp_path / "videos" / f"{each.key}.mp4", list(each.image), rate=12)
        for number, frame in enumerate(read_frames(file, range(FRAMES))):
            save_png(frame, tmp_path / "folders" / each.key / f"{number}.png")
    judged = [evaluate(tmp_path / name, run=frame_run)["per_image"] for name in ("videos", "folders")]
    assert judged[0] == judged[1]
    named = evaluate(tmp_path / "videos", data="moving-scenes", condition="edges")
    assert named["per_image"] == judged[0], "at the rate that the videos tell"
    assert f"judged are the {len(judged[0])} scenes at 12 frames per second" in named["notes"][-1]
    still_8 = evaluate(tmp_path / "folders", data="moving-scenes", condition="edges")
    assert still_8["per_image"] != judged[0] and "at 8 frames per second" in still_8["notes"][-1]
    generate(GenerateOptions(run=frame_run, out=tmp_path / "told", **FAST))
    told = evaluate(tmp_path / "told", data="moving-scenes", condition="edges")
    assert told["per_image"] == evaluate(tmp_path / "told", run=frame_run)["per_image"], "settings.json tells the rate"
    for frame in (tmp_path / "folders" / sorted(judged[0])[0]).iterdir():
        frame.unlink()
    rest = evaluate(tmp_path / "folders", data="moving-scenes", condition="edges")
    assert rest["samples"] == len(judged[0]) - 1, "an empty folder is no clip"


def test_the_commands_of_the_page_run(frame_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "video").symlink_to(frame_run)
    (sample, _) = held_out(frame_run)
    for number, frame in enumerate(sample.condition):
        save_png(frame, tmp_path / "edges" / "a" / f"{number}.png")
    save_png(sample.image[0], tmp_path / "first.png")
    page = (Path(__file__).parents[2] / "docs" / "clips.md").read_text(encoding="utf-8")
    commands = re.findall(r"^lisa ((?:generate|evaluate) .*)$", page, flags=re.M)
    assert len(commands) == 3
    for command in commands:
        quick = ["--steps", "1"] if command.startswith("generate") else []
        done = CliRunner().invoke(app, [*command.split(), *quick])
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert list(clips(tmp_path / "more")) == ["a"] and len(clips(tmp_path / "made")) == 2


@pytest.mark.parametrize(
    ("own", "asked", "places", "told"),
    [
        (24.0, 12.0, [0, 2, 4], 12.0),
        (30.0, 12.0, [0, 3, 5], 12.0),
        (100.0, 12.0, [0], 12.0),
        (6.0, 12.0, [0, 1, 2], 6.0),
        (24.0, None, [0, 1, 2], 24.0),
        (None, 12.0, [0, 1, 2], 12.0),
        (None, None, [0, 1, 2], 8.0),
    ],
)
def test_frames_are_taken_at_the_rate_that_is_told(own, asked, places, told, frame_run, tmp_path, monkeypatch):
    frames = [np.full((32, 32, 3), 20 * number, np.uint8) for number in range(8)]
    for number, frame in enumerate(frames):
        save_png(frame, tmp_path / "clip" / f"{number}.png")
    looked = []

    def info(file):
        looked.append(file)
        return ClipInfo(len(frames), (32, 32), own, None)

    monkeypatch.setattr("lisa.build.requests.clip_info", info)
    config = read_run(frame_run)
    data = config.data.model_copy(update={"frame_rate": asked})
    sides = [replace(choose_sides(frame_run, [])[0], config=config.model_copy(update={"data": data}))]
    given = {"count": None, "prompt": None, "prompts": {}, "seed": 0, "call": pair_spec("svd-controlnet").call}
    (request,) = file_requests([tmp_path / "clip"], sides, image=tmp_path / "clip" / "0.png", **given)
    assert request.condition[:, 0, 0, 0].tolist() == [20 * place for place in places]
    assert request.rate == told and len(looked) == 1


def test_rate_and_motion_that_are_told(frame_run):
    given = {"run": frame_run, "scale": 1.0}
    spec, run = pair_spec("svd-controlnet"), read_run(frame_run)
    sides = choose_sides(frame_run, [])
    asked = generation._requests(GenerateOptions(**given, rate=10.0, motion=20.0), run, sides, spec.call)
    assert {(request.rate, request.motion) for request in asked} == {(10.0, 20.0)}
    own = generation._requests(GenerateOptions(**given), run, sides, spec.call)
    assert {(request.rate, request.motion) for request in own} == {(12.0, 127.0)}
    assert "--rate is 0" in refuse(GenerateOptions(**given, rate=0.0))
    with pytest.raises(LisaError, match=r"told no motion. Leave out --motion"):
        generation._requests(GenerateOptions(**given, motion=1.0), run, sides, pair_spec("wan-vace").call)


def test_what_does_not_go_together(frame_run, tmp_path):
    (sample, _) = held_out(frame_run)
    for number, frame in enumerate(sample.condition):
        save_png(frame, tmp_path / "c" / "a" / f"{number}.png")
    save_png(sample.image[0][:16], tmp_path / "small.png")
    options = GenerateOptions(run=frame_run, condition=tmp_path / "c", image=tmp_path / "small.png", out=tmp_path / "o")
    assert "is 32x16 pixels, the condition 'a' 3 frames of 32x32 pixels" in refuse(options)
    assert "reads a picture and no prompt" in refuse(replace(options, prompt="x"))
    assert "is no clip" in refuse(replace(options, condition=tmp_path / "small.png"))
    assert "no condition clip or folder" in refuse(replace(options, condition=tmp_path / "none"))
    save_png(sample.image[0], tmp_path / "frames" / "b.png")
    assert "holds no picture 'a'" in refuse(replace(options, image=tmp_path / "frames"))
    assert not (tmp_path / "o").exists()
