"""Bad input through the real command line: one message that names value, choices or remedy; exit code 2; nothing lost.

Every case must end before anything is trained and before anything is written to the run folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import runs
import tiny
from lisa import cli
from lisa.data.images import save_png
from lisa.train.step import ControlStep

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def lisa(monkeypatch, capsys):
    """The entry point of the command, in this process: (exit code, standard output, standard error)."""

    def never(*args):
        raise AssertionError("a training step was made")

    monkeypatch.setattr(ControlStep, "__call__", never)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lisa", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


@pytest.fixture
def refused(lisa):
    """The one message of a command that must be refused."""

    def run(*arguments):
        code, out, err = lisa(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out, len(errors)) == (2, "", 1), err
        assert "Traceback" not in err
        return err[err.index("error: ") :]

    return run


@pytest.fixture
def train(refused, sd_small, tmp_path):
    """``lisa train`` that must be refused and leave no run folder."""

    def run(*overrides, model=sd_small, **changes):
        out = tmp_path / "run"
        message = refused("train", *runs.arguments(runs.settings(out, model, **changes)), *overrides)
        assert not out.exists(), "nothing is written"
        return message

    return run


@pytest.fixture
def data(tmp_path):
    """A paired folder of eight, to be spoilt."""
    folder = tmp_path / "data"
    for i in range(8):
        save_png(np.roll(PICTURE, i), folder / "images" / f"{i}.png")
        save_png(np.roll(PICTURE, i, 1), folder / "conditions" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text("a picture")
    return folder


def test_configuration(train):
    message = train(
        "train.stpes=3", "align.weighting=plian", "data.bogus=1", "train.batch_size=0", "train.max_skipped=0"
    )
    for part in (
        "5 problems",
        "train.stpes: no such setting, did you mean 'steps'?",
        "did you mean 'plain'? (got 'plian')",
        "data.bogus: no such setting (there are: source,",
        "train.batch_size: Input should be greater than or equal to 1 (got 0)",
        "train.max_skipped: ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "the override 'train.steps' has no '='. Write overrides as section.key=value"),
        ("model.pair=sd-controlnot", "animatediff-controlnet, did you mean 'sd-controlnet'?"),
        ("model.path=/nowhere/model", "there is no folder '/nowhere/model'. Check model.path"),
        ("data.source=/nowhere/data", "there is no folder '/nowhere/data'"),
        (
            "data.condition=egdes",
            "unknown scene condition 'egdes' (did you mean 'edges'?). Choices: edges, segmentation",
        ),
        ("data.size=33", "data.size is (33, 33). For this main network both sides must be multiples of 4"),
        ("data.size=[32,64]", "scenes are square; data.size is (32, 64)"),
        ("data.held_out=16", "holding out 16 of 16 samples"),
        ("align.layer=down.77", "has no layer 'down.77'"),
        ("side.init=/nowhere/side", "there is no ControlNetModel folder '/nowhere/side'"),
        ("resume=5", "there is no checkpoint '5'"),
        ("out=/dev/null/run", "'/dev/null' is a file"),
        ("train.optimizer=adamw-8bit", "train.optimizer=adamw-8bit"),
        ("log.tracker=wandb", "log.tracker=wandb needs the package wandb"),
        ("train.mixed_precision=fp16", "train.mixed_precision=fp16 needs a GPU"),
        ("train.betas=[0.9,2]", "train.betas.1: Input should be less than 1 (got 2)"),
    ],
)
def test_settings(train, monkeypatch, override, expected):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert expected in train(override)


def test_files_of_settings(refused, tmp_path):
    assert "there is no configuration file 'nowhere.yaml'" in refused("train", "nowhere.yaml")
    (tmp_path / "a.yaml").write_text("train: [")
    assert "cannot be read" in refused("train", tmp_path / "a.yaml")


def test_an_existing_run(refused, finished_run, sd_small):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    message = refused("train", *runs.arguments(runs.settings(finished_run, sd_small)))
    assert "already holds a run" in message and "--resume" in message and "--overwrite" in message
    config = ("train", finished_run / "config.yaml")
    assert "exclude each other" in refused(*config, "--resume", "--overwrite")
    assert "Choices: step-000002, step-000003" in refused(*config, "resume=99")
    # --overwrite with a mistake beside it: the old run is still there
    assert "no layer" in refused(*config, "--overwrite", "align.layer=down.77")
    assert "no folder" in refused(*config, "--overwrite", "model.path=/nowhere/model")
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda d: (d / "conditions/3.png").unlink(), "has 1 image of 8 without a condition ('3')"),
        (lambda d: (d / "images/3.txt").unlink(), "without a caption ('3')"),
        (
            lambda d: (d / "images/3.png").write_bytes((d / "images/3.png").read_bytes()[:900]),
            "images/3.png' is truncated",
        ),
        (lambda d: (d / "conditions/3.png").write_bytes(b"no picture"), "conditions/3.png' is not a readable image"),
        (lambda d: save_png(PICTURE[:16], d / "conditions/3.png"), "must have the same size"),
        (lambda d: [save_png(PICTURE * 0, f) for f in d.glob("conditions/*")], "constant"),
        (lambda d: shutil.rmtree(d / "images"), "has no folder 'images'"),
        (lambda d: [f.unlink() for f in d.glob("images/*")], "holds no images"),
    ],
    ids=["condition", "caption", "truncated", "unreadable", "sizes", "constant", "layout", "empty"],
)
def test_data(train, data, spoil, expected):
    spoil(data)
    message = train(data__source=str(data), data__held_out=2)
    assert expected in message, message


def test_models(train, sd_small, sd15, tmp_path):
    sample = tmp_path / "sample"
    shutil.copytree(sd_small, sample)
    config = sample / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "sample"}))
    message = train(model=sample)
    assert "predicts 'sample'" in message and "epsilon" in message and "v_prediction" in message
    other = tiny.make_pair(sd15)
    other.side.save(tmp_path / "side")
    assert "block_out_channels is" in train(f"side.init={tmp_path / 'side'}")


def test_generate(refused, finished_run, tmp_path):
    assert "no side network was named. Give --run RUN or --side FOLDER" in refused("generate")
    assert f"{str(tmp_path)!r} is not a run folder" in refused("generate", "--run", tmp_path)
    nowhere = tmp_path / "nowhere"
    assert "no condition image or folder" in refused("generate", "--run", finished_run, "--condition", nowhere)
    save_png(PICTURE, tmp_path / "a.png")
    out = ("--out", tmp_path / "out")
    assert "there is no prompt for 'a.png'" in refused(
        "generate", "--run", finished_run, "--condition", tmp_path / "a.png", *out
    )
    assert not (tmp_path / "out").exists()


def test_evaluate_and_prepare(refused, finished_run, data, tmp_path):
    message = refused("evaluate", data / "images", "--run", finished_run)
    assert "lacks 4 of 4 pictures ('scene-1-" in message and "never skipped" in message
    assert "there is no folder" in refused("evaluate", tmp_path / "nowhere", "--run", finished_run)
    assert "needs one of --run and --data" in refused("evaluate", data)
    assert "unknown condition 'cany' (did you mean 'canny'?). Choices:" in refused(
        "prepare", data, "--condition", "cany"
    )
    assert "there is no folder" in refused("prepare", tmp_path / "nowhere", "--condition", "canny")
    for size in ("8", "576x1024", "1,2,3", ""):
        message = refused("prepare", data, "--condition", "canny", "--size", size)
        assert f"--size is {size!r}" in message and "height,width, such as 576,1024" in message
    (data / "images" / "3.png").write_bytes(b"")
    assert "3.png" in refused("prepare", data, "--condition", "canny", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_the_parser_refuses(lisa):
    for arguments in (["train", "--bogus"], ["generate", "--steps", "0"], ["nonsense"], ["prepare"]):
        code, _, err = lisa(*arguments)
        assert code == 2 and "Traceback" not in err and err


def test_a_full_disk_ends_with_one_message(refused, monkeypatch, sd_small, tmp_path):
    """Through the command line too; that the last checkpoint is whole is tested beside the trainer."""
    import torch

    monkeypatch.undo()
    real = torch.save

    def full(value, file, *args, **kwargs):
        if "step-" in str(file):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return real(value, file, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "save", full)
    try:
        out = tmp_path / "run"
        message = refused("train", *runs.arguments(runs.settings(out, sd_small, train__steps=1)))
    finally:
        patch.undo()
    assert "no space left on the disk" in message and "still whole" in message


def test_as_a_process():
    """The installed command itself, once: its exit code, and that nothing else is said."""
    command = [sys.executable, "-m", "lisa", "train", "train.stpes=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: the configuration has a problem:",
        "  train.stpes: no such setting, did you mean 'steps'?.",
    ]
