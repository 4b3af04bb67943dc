"""``lisa quickstart`` as scripts rely on it: the files, the figures, the options; two steps, not the outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lisa
from lisa.build.training import train
from lisa.cli.report import print_summary
from lisa.data.sources import MovingScenesSource
from lisa.train.quickstart import quickstart_config

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd):
    argv = [sys.executable, "-c", "from lisa.cli import main; main()", "quickstart", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    result = run("--steps", "2", "--seed", "3", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "quickstart", result.stdout


def test_the_files_scripts_rely_on(done):
    out, _ = done
    summary = json.loads((out / "summary.json").read_text())
    assert {"model", "condition", "steps", "seconds", "peak_rss_mb"} <= summary.keys()
    assert (summary["model"], summary["condition"], summary["steps"], summary["seed"]) == ("tiny-sd", "edges", 2, 3)
    for interval in (
        summary["control_gain"],
        summary["condition_gap"],
        *[summary["fidelity"][k] for k in ("with", "without")],
    ):
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert summary["peak_rss_mb"] < 4096
    assert "| preset | sooner |" in (out / "side_network" / "README.md").read_text()
    kinds = {json.loads(line)["kind"] for line in (out / "events.jsonl").read_text().splitlines()}
    assert {"train", "held_out", "samples"} <= kinds


def test_the_picture_has_six_rows_of_four_columns(done):
    out, text = done
    (picture,) = (out / "samples").glob("*.png")
    image = np.asarray(Image.open(picture).convert("RGB"))
    rows, columns = 6, 4
    assert image.shape[0] > rows * 2 * 64 and image.shape[1] == 2 * (columns * 64 + (columns - 1) * 4)
    assert str(picture.relative_to(out.parent.parent)) in text


def test_it_fits_a_terminal(done):
    _, text = done
    assert max(map(len, text.split("import lisa\n")[0].splitlines())) <= 80


def test_the_printed_lines_load_the_side_network(done, monkeypatch):
    out, text = done
    lines = text[text.index("import lisa\n") :].split("\n\nlook at")[0]
    monkeypatch.chdir(out.parent.parent)
    scope: dict = {}
    exec(lines, scope)
    pipe = scope["pipe"]
    pipe.set_progress_bar_config(disable=True)
    condition = Image.new("RGB", (64, 64))
    assert pipe("a red circle", image=condition, num_inference_steps=1).images[0].size == (64, 64)


@pytest.mark.parametrize(("how", "arm"), [("plain", "plain"), ("aligned", "lisa")])
def test_plain_and_aligned_train_the_same_network(done, tmp_path, how, arm):
    """The decoder is not part of it."""
    out, text = done
    result = run("--steps", "2", "--seed", "3", f"--{how}", "--json", "--out", how, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)  # nothing but JSON on the standard output
    assert summary["arm"] == arm and (summary["decoder_r2"]["value"] is None) == (how == "plain")
    assert json.loads((out / "summary.json").read_text())["preset"] == "sooner" and "preset sooner, not aligned" in text
    from safetensors import safe_open

    def keys(folder):
        with safe_open(folder / "side_network" / "diffusion_pytorch_model.safetensors", "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    assert keys(out) == keys(tmp_path / how)
    configs = [(folder / "side_network" / "config.json").read_text() for folder in (out, tmp_path / how)]
    assert configs[0] == configs[1]


def test_a_second_run_needs_overwrite(done):
    out, _ = done
    result = run("--steps", "2", cwd=out.parent.parent)
    assert result.returncode == 2
    assert "--overwrite" in result.stderr and "Traceback" not in result.stderr


def test_a_flow_transformer_in_the_same_way(tmp_path):
    result = run("--model", "tiny-sd3", "--steps", "2", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["model"], summary["pair"], summary["steps"]) == ("tiny-sd3", "sd3-controlnet", 2)
    assert summary["fidelity"]["with"]["value"] is not None and (tmp_path / summary["picture"]).is_file()


def test_a_video_model_in_the_same_way(tmp_path, monkeypatch, capsys):
    """With fewer clips: each is sampled by itself."""
    monkeypatch.chdir(tmp_path)
    config = quickstart_config(out=Path("runs/video"), model="tiny-svd", steps=2)
    few = {"data": config.data.model_copy(update={"held_out": 4})}
    few["sample"] = config.sample.model_copy(update={"count": 2, "steps": 2})
    few["log"] = config.log.model_copy(update={"samples": 2})
    summary = train(config.model_copy(update=few), quiet=True)
    assert (summary["model"], summary["pair"], summary["steps"]) == ("tiny-svd", "svd-controlnet", 2)
    assert {"flicker", "warping_error"} <= summary["fidelities"]["edges"]["metrics"].keys()
    print_summary(summary, config)
    assert "warping_error with " in capsys.readouterr().out
    with Image.open(summary["picture"]) as sheet, Image.open(Path(summary["picture"]).with_suffix(".webp")) as moving:
        assert moving.n_frames == 8 and sheet.width > moving.width


def test_a_model_that_is_not_embedded(tmp_path):
    result = run("--model", "tiny-sd4", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "tiny-sd4" in result.stderr and "tiny-sd3" in result.stderr


PIPELINES = {
    "tiny-sd": "StableDiffusionPipeline",
    "tiny-sd3": "StableDiffusion3Pipeline",
    "tiny-svd": "StableVideoDiffusionPipeline",
}
PICTURES = sorted(set(PIPELINES) - {"tiny-svd"})


def stock(name):
    import diffusers

    pipe = getattr(diffusers, PIPELINES[name]).from_pretrained(lisa.zoo.path(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", PICTURES)
def test_the_stock_pipeline_runs_the_embedded_model(name):
    assert stock(name)("a red circle on a blue background", num_inference_steps=2).images[0].size == (64, 64)


def test_the_stock_pipeline_goes_on_from_a_picture():
    """With motion: shapes leave the places where they were."""
    frame = MovingScenesSource(None, 0, 1, 32, 0, 8, 8.0)[0].image[0]
    made = stock("tiny-svd")(
        Image.fromarray(frame), height=32, width=32, fps=8, generator=torch.manual_seed(0), output_type="np"
    ).frames[0]
    assert made.shape == (8, 32, 32, 3)
    errors = [float(np.abs(clip - frame / 255).mean()) for clip in (made[0], np.full_like(made[0], 0.5))]
    assert errors[0] < 0.25 * errors[1]  # it begins with that picture
    changes = np.abs(made - made[:1]).mean((1, 2, 3))
    assert 0.01 < changes[-1] < errors[1] and changes[-1] > 1.5 * changes[1]


def test_every_embedded_model_is_named_where_people_look():
    for name in lisa.zoo.names():
        assert name in PIPELINES and name in run("--help", cwd=ROOT).stdout
        assert name in (ROOT / "docs" / "configuration.md").read_text("utf-8")
        assert f"--model {name}" in (ROOT / "README.md").read_text("utf-8") or name == "tiny-sd"


@pytest.mark.parametrize("name", lisa.zoo.names())
def test_the_embedded_model_is_light(name):
    from pathlib import Path

    files = [path for path in Path(lisa.zoo.path(name)).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert not [path for path in files if path.suffix in (".bin", ".pkl", ".pt")]


def test_every_embedded_model_has_a_quickstart():
    from lisa.train.quickstart import QUICKSTART_MODELS

    assert sorted(QUICKSTART_MODELS) == lisa.zoo.names()
