"""Every folder of tests is looked into."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path


def test_no_folder_of_tests_is_left_out(pytestconfig):
    """pytest passes over folders of some names, ``build`` among them, without a word."""
    root = Path(__file__).parent
    folders = {part for file in root.rglob("test_*.py") for part in file.relative_to(root).parts[:-1]}
    left_out = pytestconfig.getini("norecursedirs")
    assert "build" in folders
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in left_out)]
