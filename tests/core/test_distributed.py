"""Two processes must read what one process reads: the meter, and the running estimate of the normalised weighting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from lisa.core import LearningMeter, make_weighting

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
generator = torch.Generator().manual_seed(0)
meter, weighting, late = LearningMeter(), make_weighting("normalised"), LearningMeter()
weights = []
for step in range(4):
    target, prior, controlled, decoded = (torch.randn(8, 4, 3, 3, generator=generator) for _ in range(4))
    t = torch.rand(8, generator=generator) * 1000
    target = target * (1 + t[:, None, None, None] / 100)
    mine = slice(rank, None, world)
    meter.update(target[mine], prior[mine], controlled[mine], t[mine], decoded[mine])
    weights.append(weighting((target - prior)[mine], t[mine], True).tolist())
if rank == 0:
    late.update(target, prior, controlled, t)  # the others have seen nothing
reading = meter.read()
assert meter.read() == reading
print(json.dumps({
    "reading": reading.to_json(), "late": late.read().to_json(), "local": meter.read(local=True).count,
    "energy": weighting.energy.tolist(), "weights": weights,
}), flush=True)
if world > 1:
    torch.distributed.barrier()  # a process that leaves while the other still talks to it takes it down
    torch.distributed.destroy_process_group()
"""


def run(world: int, folder: Path) -> list[dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    results = []
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        results.append(json.loads(out))
    return results


def flat(value):
    """All numbers of a nested structure, None as NaN."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for each in value for number in flat(each)]
    return [float("nan") if value is None else value]


def test_two_processes_read_what_one_reads(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", "0", "1", str(tmp_path)])
    exec(SCRIPT, {})
    alone = json.loads(capsys.readouterr().out)
    first, second = run(2, tmp_path)
    assert (alone["local"], first["local"], second["local"]) == (32, 16, 16)
    for each in (first, second):
        for name in ("reading", "late", "energy"):
            assert flat(each[name]) == pytest.approx(flat(alone[name]), rel=1e-5, nan_ok=True), name
    interleaved = [
        [weight for pair in zip(a, b, strict=True) for weight in pair]
        for a, b in zip(first["weights"], second["weights"], strict=True)
    ]
    assert flat(interleaved) == pytest.approx(flat(alone["weights"]), rel=1e-5)
