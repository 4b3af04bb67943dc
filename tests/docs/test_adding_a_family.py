"""docs/adding-a-family.md keeps its word: its code, installed as a package, is a pair like any other."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import runs
from conformance.checks import CHECKS
from lisa.cli.app import app
from lisa.pairs import pair_names, pair_spec, registry

PAGE = (Path(__file__).parent.parent.parent / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
TEST = "# test_lisa_pixart.py\n"


def blocks(language: str) -> list[str]:
    """The page's blocks of a language; of commands, which name none, with ""."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.S | re.M)
    return [text for name, text in found if name == language]


def family() -> str:
    return "".join(block for block in blocks("python") if not block.startswith(TEST))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as pip would install it: the module, and its entry point in the metadata of a distribution."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "lisa_pixart.py").write_text(family(), encoding="utf-8")
    metadata = site / "lisa_pixart-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lisa-pixart\nVersion: 0.1\n")
    (toml,) = blocks("toml")
    groups = tomllib.loads(toml)["project"]["entry-points"]
    lines = [f"[{group}]\n{name} = {value}\n" for group, points in groups.items() for name, value in points.items()]
    (metadata / "entry_points.txt").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setattr(registry, "_PAIRS", dict(registry._PAIRS))
        registry._find_others.cache_clear()
        yield
        sys.modules.pop("lisa_pixart", None)
    registry._find_others.cache_clear()


@pytest.fixture(scope="module")
def row(installed):
    """Of the page's own test."""
    (test,) = [block for block in blocks("python") if block.startswith(TEST)]
    names: dict[str, object] = {}
    exec(compile(test, "test_lisa_pixart.py", "exec"), names)
    assert names["CHECKS"] is CHECKS and callable(names["test_conformance"])
    return names["ROW"]


def test_it_is_short():
    assert len(family().splitlines()) < 150


def test_it_is_not_one_of_ours_and_found_by_its_entry_point(installed, row):
    assert "pixart-controlnet" not in (Path(registry.__file__).parent / "__init__.py").read_text(encoding="utf-8")
    assert pair_names()[-1] == row.pair == "pixart-controlnet"


@pytest.mark.parametrize("name", CHECKS)
def test_conformance(row, name, tmp_path):
    CHECKS[name](row, tmp_path)


def test_its_encoders_can_be_let_go_of_and_read_again(row, tmp_path):
    """What ``model.offload_encoders=disk`` does."""
    main = pair_spec(row.pair).load_main(str(row.folder(tmp_path)))
    before = main.encode_text(["a b"])
    main.offload_encoders("disk")
    assert main.pipeline.vae is None and main.pipeline.text_encoder is None
    with main.encoders():
        again = main.encode_text(["a b"])
        assert main.pipeline.vae is not None
    assert main.pipeline.text_encoder is None
    assert before.keys() == again.keys() and all(torch.equal(before[name], again[name]) for name in before)


def test_its_commands_run(row, tmp_path, monkeypatch):
    """A short training, with the tiny model in place of the public one; then pictures, and how to load the result."""
    monkeypatch.chdir(tmp_path)
    row.folder(tmp_path / "model")
    (commands,) = blocks("")
    changes = runs.arguments(runs.settings(tmp_path, tmp_path / "model", data__size=64, train__ema=0.9))
    small = [change for change in changes if not change.startswith("out=")]
    for command in commands.splitlines():
        argv = shlex.split(command)
        extra = {"train": small, "generate": ["--steps", "1", "--count", "2"]}.get(argv[1], [])
        result = CliRunner().invoke(app, [*argv[1:], *extra], env={"COLUMNS": "100"})
        assert result.exit_code == 0, result.output
        if argv[1] == "models":
            assert "PixArtControlNet" in result.stdout and "block.13" in result.stdout and "1152" in result.stdout
        if argv[1] == "train":
            assert "from lisa_pixart import PixArtControlNet, PixArtControlNetPipeline" in result.stdout
    assert json.loads((tmp_path / "runs/pixart/summary.json").read_text())["steps"] == 2
    card = (tmp_path / "runs/pixart/side_network/README.md").read_text(encoding="utf-8")
    assert "from lisa_pixart import PixArtControlNet, PixArtControlNetPipeline" in card
    assert list((tmp_path / "runs/pixart/generated").glob("*.png"))
