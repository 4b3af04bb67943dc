"""docs/memory.md keeps its word: its configuration is one, and its figures are those of the parameter counts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "memory.md").read_text(encoding="utf-8")

sys.path.insert(0, str(DOCS))
try:
    import make_memory
finally:
    sys.path.remove(str(DOCS))


def test_the_configurations_are_accepted():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    flux, clips = (check_settings(TrainConfig, yaml.safe_load(block)) for block in blocks)
    assert flux.main_dtype == "bfloat16" and flux.model.quantize == "nf4" and flux.side.lora_rank == 64
    assert clips.main_dtype == "bfloat16" and clips.data.frames == 14 and clips.side.gradient_checkpointing


def test_the_activations_are_those_of_the_result():
    (file,) = re.findall(r"\(\.\./(benchmarks/results/\S+-activations-svd\.json)\)", PAGE)
    found = json.loads((DOCS.parent / file).read_text(encoding="utf-8"))["rows"]
    for way in {row["activations"] for row in found}:
        figures = [str(row["peak_gib"]) for row in found if row["activations"] == way]
        (line,) = [line for line in PAGE.splitlines() if line.replace("`", "").startswith(f"| {way} |")]
        assert line.split(" | ")[1:] == [figures[0], f"{figures[1]} |"]


@pytest.mark.parametrize("family", make_memory.FAMILIES)
def test_the_figures_are_those_of_the_parameter_counts(family):
    lines = make_memory.rows(family)
    assert [line for line in PAGE.splitlines() if line.startswith(f"| {family} |")] == lines
    assert len(lines) == len(make_memory.SETTINGS)


def test_what_a_weight_takes():
    from torch import nn

    network = nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20))
    assert make_memory.main_bytes(network, "bf16") == 2 * (200 + 20 + 40)
    assert make_memory.main_bytes(network, "int8") == 200 + 2 * (20 + 40)
    assert make_memory.main_bytes(network, "nf4") == pytest.approx(200 * 4.127 / 8 + 2 * (20 + 40), rel=1e-3)
