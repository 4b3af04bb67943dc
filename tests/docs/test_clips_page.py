"""What docs/clips.md says runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from lisa.cli.app import app
from lisa.data.images import save_png
from lisa.data.sources import Sampling, check_source, open_source
from lisa.train.config import TrainConfig
from lisa.train.quickstart import quickstart_config
from lisa.train.settings import load_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clips.md").read_text(encoding="utf-8")


def test_the_command_makes_a_folder_to_train_on(tmp_path, monkeypatch):
    (command,) = re.findall(r"^(lisa prepare .*)$", PAGE, flags=re.M)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        save_png(picture, Path("videos") / "clips" / "one" / f"{number}.png")
    result = CliRunner().invoke(app, command.split()[1:])
    assert result.exit_code == 0 and "1 made, 0 kept" in result.output, result.output
    source = open_source("videos-canny", sampling=Sampling(3), default_caption="")
    assert source[0].image.shape == source[0].condition.shape == (3, 320, 512, 3)
    check_source(source)


def test_the_way_from_training_to_figures_on_the_embedded_model(tmp_path, monkeypatch):
    commands = re.findall(r"^(lisa train .*|lisa generate .* made|lisa evaluate made .*)$", PAGE, flags=re.M)
    assert [command.split()[1] for command in commands] == ["train", "generate", "evaluate"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    small = {
        "train": [
            "train.steps=2",
            "data.scenes=8",
            "data.held_out=2",
            "sample.count=2",
            "sample.steps=2",
            "log.samples=2",
        ],
        "generate": ["--count", "2", "--steps", "2"],
        "evaluate": [],
    }
    for command in commands:
        result = CliRunner().invoke(app, [*command.split()[1:], *small[command.split()[1]]])
        assert result.exit_code == 0, result.output
    assert "flicker" in result.output and "warping_error" in result.output


def test_the_example_is_what_the_quickstart_trains():
    example = load_settings(TrainConfig, ROOT / "examples" / "moving-scenes.yaml", [])
    quickstart = quickstart_config(out=example.out, model="tiny-svd")
    for section in ("model", "side", "align", "train", "sample"):
        assert getattr(example, section) == getattr(quickstart, section), section
    kept = {"scenes"}  # the quickstart draws no more than its steps can see
    assert example.data.model_dump(exclude=kept) == quickstart.data.model_dump(exclude=kept)


def test_the_python_on_the_page_runs_and_says_the_right_shapes():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    names: dict = {}
    exec(block, names)
    sample = names["sample"]
    told = dict(re.findall(r'truth\["(\w+)"\].*?\((\d[\d, ]+)\)', block))
    assert len(told) == 3
    for name, shape in told.items():
        assert sample.truth[name].shape == tuple(int(size) for size in shape.split(","))
    assert sample.image.shape == sample.condition.shape == (8, 64, 64, 3)
