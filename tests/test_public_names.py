"""``import lisa`` is light; its names are there when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

import lisa

MODULES = {where.partition(":")[0] for where in {**lisa._WHERE, **lisa._CALLABLE_PACKAGES}.values()}


def python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_light():
    """Only what Python itself brings along, and this module; so it takes milliseconds on any machine."""
    code = (
        "import sys, time, importlib, types, typing\n"
        "before, start = set(sys.modules), time.process_time()\n"
        "import lisa\n"
        "print(time.process_time() - start, *sorted(set(sys.modules) - before))"
    )
    seconds, *modules = python(code).split()
    assert set(modules) <= {"lisa", "__future__"} and float(seconds) < 0.1


@pytest.mark.parametrize("name", lisa.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(lisa)
    assert getattr(lisa, name) is not None


def test_public_names_are_all_mapped():
    assert {"__version__", *lisa._WHERE, *lisa._CALLABLE_PACKAGES} == set(lisa.__all__)
    assert all(find_spec(module) for module in MODULES)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        lisa.atach  # noqa: B018


def test_packages_with_the_name_of_a_verb_can_be_called(monkeypatch):
    """lisa.train is the trainer's package and trains when called, in whatever order things are imported."""
    calls = []
    monkeypatch.setattr(lisa, "_load", lambda where: lambda *args, **kwargs: calls.append((where, args, kwargs)))
    lisa.train({"a": 1}, b=2)
    lisa.evaluate("folder")
    settings = import_module("lisa.train.settings")
    from lisa import train

    train("again")
    assert lisa.train.settings is settings
    assert calls == [
        ("lisa.build.training:train", ({"a": 1},), {"b": 2}),
        ("lisa.build.evaluation:evaluate", ("folder",), {}),
        ("lisa.build.training:train", ("again",), {}),
    ]


def test_callable_after_a_direct_import_of_the_package():
    assert python("import lisa.train.settings as s, lisa; print(callable(lisa.train), s.__name__)").split() == [
        "True",
        "lisa.train.settings",
    ]


def test_version_is_literal():
    assert lisa.__version__ == "0.1.0"
