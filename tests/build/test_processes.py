"""Two processes (gloo, on the CPU) against one with batches of twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import lisa
import runs
from lisa.common.runfolder import RunFolder

SCRIPT = """
import json, os, sys
import lisa
from lisa.cli.common import quiet_libraries

quiet_libraries()
raw = json.load(open(sys.argv[1]))
first = lisa.train({**raw, "train": {**raw["train"], "steps": 2}}, quiet=True)
summary = lisa.train({**raw, "resume": "latest"}, quiet=True)
json.dump([first, summary], open(f"{sys.argv[1]}.{os.environ['RANK']}", "w"))
"""


def test_two_processes_are_one_with_twice_the_batch(sd_small, tmp_path):
    """The same side network, events (once each) and summary; also stopped and resumed between two events."""
    changes = {"train__steps": 3, "train__accumulation": 2, "log__every": 3, "data__held_out": 5, "data__scenes": 17}
    changes |= {"log__fidelity_every": 2, "log__fidelity_samples": 2, "log__fidelity_share": None}
    single, double = (runs.settings(tmp_path / name, sd_small, **changes) for name in ("single", "double"))
    single["train"]["batch_size"] = 4
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "double.json").write_text(json.dumps(double))
    # What accelerate launch does for several CPU processes needs MPI; torchrun starts them as it does for GPUs.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(tmp_path / "script.py"), str(tmp_path / "double.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = lisa.train(single, quiet=True)

    results = [json.loads((tmp_path / f"double.json.{rank}").read_text()) for rank in (0, 1)]
    assert results[0] == results[1], "every process is given the summary"
    summary = results[0][1]
    assert summary["steps"] == 3 and results[0][0]["steps"] == 2
    assert summary["best"]["step"] == expected["best"]["step"] == 2 and RunFolder(tmp_path / "double").best.is_dir()
    for name in ("control_gain", "condition_gap", "decoder_r2"):
        assert summary[name] == pytest.approx(expected[name], abs=1e-4), name
    files = [tmp_path / name / "side_network" / "diffusion_pytorch_model.safetensors" for name in ("single", "double")]
    one, two = (load_file(file) for file in files)
    start = load_file(tmp_path / "single" / "side_network" / "diffusion_pytorch_model.safetensors")
    assert one.keys() == two.keys() == start.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name  # Adam magnifies rounding near zero gradients
    ours = {e["step"]: e for e in runs.events(tmp_path / "double", "train")}
    (theirs,) = runs.events(tmp_path / "single", "train")
    kinds = [(event["step"], event["kind"]) for event in RunFolder(tmp_path / "double").read_events()]
    assert len(kinds) == len(set(kinds)), "each event is written once"
    assert ours[3].keys() == theirs.keys()
    # The sitting that ended at step 2 wrote its event then: what is left for step 3 is that step alone.
    assert ours[3]["learning_rate"] == theirs["learning_rate"]
    mean = (2 * ours[2]["mse"] + ours[3]["mse"]) / 3
    assert mean == pytest.approx(theirs["mse"], rel=1e-4), "over all steps and processes"
