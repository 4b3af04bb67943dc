"""Pairs of other packages: found by their entry points, refused in words that name the package."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from lisa.common.errors import LisaError
from lisa.pairs import pair_names, pair_spec, register, registry


@pytest.fixture
def offered(monkeypatch):
    """Makes (name of a function) -> entry points of that function of this module; the registry is as before after."""
    monkeypatch.setattr(registry, "_PAIRS", dict(registry._PAIRS))

    def offer(function):
        point = EntryPoint("other", f"{__name__}:{function}", registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])
        registry._find_others.cache_clear()

    yield offer
    registry._find_others.cache_clear()


def add_one(add):
    add(replace(registry._PAIRS["sd-controlnet"], name="other-controlnet"))


def take_a_name(add):
    add(replace(registry._PAIRS["sd-controlnet"]))


def fail(_add):
    raise ImportError("no module named xformers\nand more")


def test_pairs_of_another_package(offered):
    offered("add_one")
    assert pair_names()[-1] == "other-controlnet"
    assert pair_spec("other-controlnet").side_kind == "ControlNetModel"


@pytest.mark.parametrize(
    ("function", "words"),
    [("fail", "fail fails: .*no module named xformers"), ("take_a_name", "'sd-controlnet' already"), ("gone", "gone")],
)
def test_packages_that_cannot_be_loaded_are_named(offered, function, words):
    offered(function)
    for _ in range(2):  # and again, not only the first time
        with pytest.raises(LisaError, match=words) as caught:
            pair_names()
    assert __name__ in str(caught.value) and "uninstall" in str(caught.value)


def test_registering_the_same_twice_does_no_harm():
    assert register(pair_spec("sd-controlnet")) is pair_spec("sd-controlnet")
