"""docs/families.md tells of every pair, and of everything that is not supported."""

from __future__ import annotations

from pathlib import Path

from lisa.pairs import pair_names, pair_spec
from lisa.pairs.unsupported import UNSUPPORTED

PAGE = (Path(__file__).parent.parent.parent / "docs" / "families.md").read_text(encoding="utf-8")


def test_every_pair_has_its_section():
    for name in pair_names():
        (section,) = [part for part in PAGE.split("\n## ") if f"`{name}`" in part.splitlines()[0]]
        spec = pair_spec(name)
        assert spec.side_kind in section or spec.side_kind.removesuffix("Model") in section, name
        assert "Shared: " in section and "upported" in section, name


def test_what_is_not_supported_is_said():
    (section,) = [part for part in PAGE.split("\n## ") if part.startswith("Not supported")]
    assert [name for name in UNSUPPORTED if name not in section] == []
