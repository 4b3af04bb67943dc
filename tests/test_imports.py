"""Who may import whom. Read off the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lisa

ROOT = Path(lisa.__file__).parent

CORE = {"common", "core"}
NETWORKS = {"common", "core", "networks", "processes", "mains", "sides", "sharing", "pairs"}
# Each room and top-level module, and the others that it may import. ``common`` is open to all.
MAY_IMPORT = {
    "common": set(),
    "core": {"common"},
    "processes": {"common"},
    "data": {"common"},
    "zoo": {"common"},
    "compare": {"common"},
    "networks": {"common", "core"},
    "mains": {"common", "core", "processes"},
    "sides": {"common", "core", "networks", "processes"},
    "sharing": {"common", "core", "processes", "mains", "sides"},
    "pairs": {"common", "core", "networks", "processes", "mains", "sides", "sharing"},
    "families": {"common", "core", "processes", "mains", "sides", "pairs"},
    "train": {"common", "core", "processes", "data", "pairs"},
    "sample": {"common", "core", "data", "pairs"},
    "export": {"common", "core", "data", "pairs", "zoo"},
    "evaluate": {"common", "core", "data", "pairs"},
    "analyse": {"common", "core", "data", "pairs"},
    "build": {*NETWORKS, "data", "zoo", "train", "sample", "export", "evaluate", "analyse", "compare"},
    "cli": {"common", "build", "compare", "zoo"},
}
# What a verb needs to read its arguments and to tell what came out; and exceptions that are stated, not grown.
EXCEPTIONS = {
    ("train", "mains"),  # the protocol of main networks (mains/base.py), with which it encodes data
    ("cli", "train"),  # the configuration models: a verb turns arguments into them
    ("cli", "data"),  # prepare and photos are verbs of the data room alone
    ("cli", "export"),  # the lines that load a result, for the last words of a training
    ("cli", "pairs"),  # the same: the name of the pipeline
}
# Only these rooms may know these packages at all: the core knows tensors, the command line is quick. Evaluation knows
# transformers and torch for what published protocols read off pictures (evaluate/extractors/).
ONLY = {
    "diffusers": {"networks", "mains", "sides", "pairs", "processes", "train", "build", "sample", "cli"},
    "transformers": {"networks", "mains", "train", "build", "cli", "evaluate"},
    "accelerate": {"train", "build"},
    "typer": {"cli"},
    "pydantic": {"train"},
    "omegaconf": {"train"},
    "torch": NETWORKS - {"common"} | {"train", "sample", "export", "evaluate", "build"},
    "matplotlib": {"export", "compare", "analyse"},
    "jinja2": {"compare"},
}


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


FILES = sorted(
    path for path in ROOT.rglob("*.py") if path.name not in ("__init__.py", "__main__.py") or path.parent != ROOT
)


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it, under TYPE_CHECKING too."""
    names = set()
    package = ("lisa", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    """Rooms of ours among imported names; ``import lisa`` and ``lisa.__version__`` are of none."""
    ours = {room_of(path) for path in FILES}
    return {
        parts[1] for name in names if (parts := name.split("."))[0] == "lisa" and len(parts) > 1 and parts[1] in ours
    }


def test_every_room_is_in_the_table():
    assert {room_of(path) for path in FILES} <= MAY_IMPORT.keys()
    assert all(allowed <= MAY_IMPORT.keys() for allowed in MAY_IMPORT.values())


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES}))
def test_who_imports_whom(room):
    used: dict[str, list[str]] = {}
    for path in FILES:
        if room_of(path) == room:
            for other in rooms(imported(path)) - {room}:
                used.setdefault(other, []).append(path.name)
    stated = {other for who, other in EXCEPTIONS if who == room}
    forbidden = {other: files for other, files in used.items() if other not in MAY_IMPORT[room] | stated}
    assert forbidden == {}
    assert stated <= used.keys(), "an exception that is no longer needed"


def test_nothing_imports_the_command_line():
    assert [path.name for path in FILES if room_of(path) != "cli" and "cli" in rooms(imported(path))] == []


@pytest.mark.parametrize("package", sorted(ONLY))
def test_who_knows_which_package(package):
    users = {room_of(path) for path in FILES if any(name.split(".")[0] == package for name in imported(path))}
    assert users <= ONLY[package]


def test_no_star_imports():
    assert [path.name for path in FILES if any(name.endswith(".*") for name in imported(path))] == []


def test_files_stay_small():
    """A file that outgrows this asks for a new room."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 320} == {}
