"""The command line: quick answers, pure JSON, signals, and arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

import lisa
import runs
from lisa.cli import main
from lisa.cli.app import app
from lisa.cli.common import split_arguments
from lisa.common.runfolder import RunFolder

VERBS = (
    "quickstart",
    "train",
    "compare",
    "generate",
    "evaluate",
    "analyse",
    "export",
    "prepare",
    "photos",
    "pretrain",
)
HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "skimage", "omegaconf")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"]])
def test_quick_answers_import_nothing_heavy(arguments):
    code = (
        "import sys, time\n"
        "from lisa.cli import main\n"
        f"sys.argv = ['lisa', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    print(end.code, time.process_time(), *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, seconds, *heavy = done.stderr.split()
    assert (status, heavy) == ("0", []) and float(seconds) < 1
    expected = f"lisa {lisa.__version__}" if arguments == ["--version"] else "Usage: lisa"
    assert expected in done.stdout


def test_every_verb_explains_itself():
    overview = invoke("--help").output
    for verb in VERBS:
        assert verb in overview and invoke(verb, "--help").exit_code == 0
    assert invoke("trian").exit_code == 2


def test_a_run_from_end_to_end_as_json(sd_small, tmp_path):
    """train, generate, evaluate: standard output is JSON and nothing else; so is prepare's."""
    out = tmp_path / "lr=1e-3"  # a path with a "=" is no override
    config = tmp_path / "a=b.yaml"
    config.write_text(yaml.safe_dump(runs.settings(out, sd_small)))
    trained = invoke("train", config, "train.steps=1", "--plain", "--json")
    assert trained.exit_code == 0
    summary = json.loads(trained.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["arm"] == "plain" and summary["steps"] == 1 and "train 1/1" in trained.stderr
    made = invoke("generate", "--run", out, "--out", tmp_path / "made", "--steps", 1, "--guidance", 1, "--json")
    assert json.loads(made.stdout)["made"] == 4 and "4/4" in made.stderr
    judged = invoke("evaluate", tmp_path / "made", "--run", out, "--json", "--out", tmp_path / "result.json")
    result = json.loads(judged.stdout)
    assert result["samples"] == 4 and result == json.loads((tmp_path / "result.json").read_text())
    table = invoke("evaluate", tmp_path / "made", "--run", out).stdout
    assert "edge_f1" in table and "[" in table
    again = invoke("train", out / "config.yaml", "--resume")  # what was written is what to go on with
    assert again.exit_code == 0, again.output
    for line in ("control gain", "condition gap", "fidelity", "side_network", "from_pretrained"):
        assert line in again.stdout
    prepared = invoke("prepare", tmp_path / "made", "--condition", "canny", "--json")
    assert json.loads(prepared.stdout)["samples"] == 4
    assert "0 made, 4 kept" in invoke("prepare", tmp_path / "made", "--condition", "canny").stdout


def test_the_configuration_file_may_be_left_out(tmp_path):
    file = tmp_path / "x=1.yaml"
    assert split_arguments("data.source=hub:a//b", ["seed=1"]) == (None, ["data.source=hub:a//b", "seed=1"])
    assert split_arguments(str(file), None) == (None, [str(file)])
    file.touch()
    assert split_arguments(str(file), ["seed=1"]) == (str(file), ["seed=1"])
    assert split_arguments(None, None) == (None, [])


def test_stopped_by_a_signal_and_continued(sd_small, tmp_path):
    """A real process: SIGTERM while training, a checkpoint, an exit code that says so, and the command that goes on."""
    out = tmp_path / "run"
    raw = runs.settings(out, sd_small, train__steps=100_000, log__every=1)
    command = [sys.executable, "-m", "lisa", "train", *runs.arguments(raw)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not any(RunFolder(out).read_events("train")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and stdout == ""
    assert "Traceback" not in stderr
    assert f"a checkpoint was written. Continue with: lisa train {out / 'config.yaml'} --resume" in stderr
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert [e["step"] for e in RunFolder(out).read_events("train")][-1] == step >= 1
    done = invoke("train", out / "config.yaml", f"train.steps={step + 1}", "--resume", "--json")
    assert json.loads(done.stdout)["steps"] == step + 1


def test_only_the_first_process_speaks(monkeypatch, capsys):
    from lisa.cli import common

    monkeypatch.setenv("RANK", "1")
    assert not common.is_main_process()
    with pytest.raises(BaseException) as caught:
        common.interrupted("x")
    assert caught.value.exit_code == 130 and capsys.readouterr().err == ""
    monkeypatch.delenv("RANK")
    assert common.is_main_process() and os.environ.get("RANK") is None


def test_memory_that_does_not_suffice_is_one_message(monkeypatch, capsys):
    import torch

    problem = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79.10 GiB in total. More"
    )

    def fail(**_):
        raise problem

    monkeypatch.setattr("lisa.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "(CUDA out of memory. Tried to allocate 20.00 GiB)" in said
    assert "side.gradient_checkpointing=true" in said and "--resume" in said and len(said.splitlines()) == 1
    problem = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main()
