"""``lisa models``: what it lists is what there is."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lisa.cli.app import app
from lisa.cli.models import shorten
from lisa.pairs import pair_names, pair_spec


def test_json_has_what_scripts_rely_on():
    result = CliRunner().invoke(app, ["models", "--json"])
    pairs = json.loads(result.stdout)
    assert [pair["name"] for pair in pairs] == pair_names()
    keys = {"name", "main", "side", "pipeline", "prediction", "layers", "shared", "verified_by"}
    assert result.exit_code == 0 and all(keys <= pair.keys() for pair in pairs)
    shared = {pair["name"]: pair["shared"] for pair in pairs}
    assert all((text != "") == pair_spec(name).shares_prefix for name, text in shared.items())
    assert shared["sd-t2i-adapter"] == ""
    makes = {pair["name"]: pair["makes"] for pair in pairs}
    assert {name for name, what in makes.items() if what == "pictures"} == {
        name for name in pair_names() if not pair_spec(name).call.clips
    }
    assert (makes["wan-vace"], makes["svd-controlnet"]) == ("clips", "clips that go on from a picture")
    sd = next(pair for pair in pairs if pair["name"] == "sd-controlnet")
    shapes = [(layer["channels"], layer["stride"]) for layer in sd["layers"]]
    assert shapes == [(320, 1)] * 3 + [(320, 2), (640, 2), (640, 2), (640, 4)] + [(1280, 4)] * 2 + [(1280, 8)] * 4


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "down.0-11, mid"),
        (["sd-controlnet"], "down.5  (default)"),
        (["sd-t2i-adapter"], "shared        nothing"),
        (["wan-vace"], "makes         clips"),
    ],
)
def test_table_fits_a_terminal(arguments, shown):
    result = CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "80"})
    assert result.exit_code == 0 and shown in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if line.startswith(("│", "┃", "┏"))) <= 80


def test_names_are_shortened():
    assert shorten(["down.0", "down.1", "mid", "block.0"]) == "down.0-1, mid, block.0"
