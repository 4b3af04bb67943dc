"""The README keeps its word: every command in it runs, the option page is up to date, pictures exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import lisa

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Runs each training command at a size that takes seconds; the commands themselves are the README's.
SMALL = [
    "train.steps=2",
    "train.batch_size=2",
    "data.held_out=2",
    "log.samples=2",
    "sample.steps=1",
    "sample.count=2",
    "log.tracker=none",
]


def commands(page: str = README) -> list[list[str]]:
    """The lines of a page's blocks that name no language."""
    found, block = [], None
    for line in page.splitlines():
        if line.startswith("```"):
            block = line.strip("`") if block is None else None
        elif block == "" and line.strip() and not line.startswith("make "):
            found.append(shlex.split(line, comments=True))
    return found


def small(command: list[str]) -> list[str]:
    if command[:2] == ["lisa", "train"]:
        analysed = "out=runs/first" in command  # lisa analyse wants eight held-out samples
        scenes = [] if "examples/photos.yaml" in command else ["data.scenes=16"]
        return [*command, *SMALL, *scenes, *(["data.held_out=8"] if analysed else [])]
    if command[:2] == ["lisa", "compare"]:  # each of its runs is a process
        return [
            *[{"5": "1", "plain,lisa,shuffled": "plain,lisa"}.get(part, part) for part in command],
            *SMALL,
            "data.scenes=8",
        ]
    if command[:2] == ["lisa", "generate"]:
        return [*command, "--steps", "1"]
    if command[:2] == ["lisa", "analyse"]:
        return [*command, "--levels", "1"]
    if command[:2] == ["lisa", "prepare"]:
        return [part if part != "16" else "2" for part in command]
    return command


def test_every_command_of_the_readme_runs(tmp_path):
    assert len(commands()) >= 8
    for folder in ("examples", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    pages = [
        README,
        (ROOT / "docs" / "export.md").read_text(encoding="utf-8"),
        (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"),
    ]  # in this order: one uses the other's run
    for command in [command for page in pages for command in commands(page)]:
        argv = [sys.executable, "-c", "from lisa.cli import main; main()", *small(command)[1:]]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/photos/side_network/config.json").is_file()
    assert len(list((tmp_path / "runs/photos/generated").glob("*.png"))) == 2


def test_the_example_loop_runs():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import own_loop
    finally:
        sys.path.pop(0)
    readable = own_loop.main(steps=3)
    assert len(readable) == 3
    assert readable[0] == 0 != readable[-1]  # the decoder's zero-initialised output has begun to move


def test_the_three_lines_of_the_readme_are_the_public_call():
    block = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    compile(block, "README.md", "exec")
    assert "lisa.attach(controlnet, layer=" in block
    assert "aligner(target=target, prior=prior, timesteps=t)" in block


def test_the_option_page_is_up_to_date():
    done = subprocess.run([sys.executable, str(ROOT / "docs/make_reference.py"), "--check"], timeout=120)
    assert done.returncode == 0, "run: python docs/make_reference.py"


@pytest.mark.parametrize(
    "page", [p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *ROOT.glob("docs/*.md")]]
)
def test_links_point_at_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [t for t in targets if "://" not in t and not ((ROOT / page).parent / t).exists()]
    assert not missing


@pytest.mark.parametrize(
    "name",
    ["2026-12-01-quickstart-tiny-sd-cpu", "2026-12-01-quickstart-tiny-sd3-cpu", "2026-11-30-quickstart-tiny-svd-cpu"],
)
def test_the_readme_quotes_the_recorded_quickstart(name):
    """The figures are those of the recorded runs (one drew the picture), and each run's intervals lie apart."""
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))
    assert f"benchmarks/results/{name}.json" in README
    network = lisa.zoo.path(result["model"])
    (weights,) = [file for part in ("unet", "transformer") for file in Path(network, part).glob("*.safetensors")]
    assert sha256(weights.read_bytes()).hexdigest() == result["network_sha256"], "figures of other weights"
    fidelity = result["fidelity"]
    assert result["condition_gap"]["low"] > 0 and fidelity["with"]["low"] > fidelity["without"]["high"]
    for interval in (fidelity["without"], fidelity["with"], result["condition_gap"]):
        assert "{value:.2f} [{low:.2f}, {high:.2f}]".format(**interval) in " ".join(README.split())
