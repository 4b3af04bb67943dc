"""Arms by name or written out: what they set, what they may not set, and what they are called."""

from __future__ import annotations

import pytest

from lisa.build.arms import ARMS, arm_names, parse_arms, spread_layers
from lisa.common.errors import LisaError
from lisa.train.config import TrainConfig
from lisa.train.settings import load_settings


@pytest.mark.parametrize("name", ARMS)
def test_every_named_arm_is_a_configuration(name):
    (arm,) = parse_arms([name])
    overrides = arm.resolved(lambda: (["down.0", "down.1", "mid"], "down.1"))
    config = load_settings(TrainConfig, None, [*overrides, "train.batch_size=2"])
    assert config.align.enabled is (name != "plain") and ARMS[name].purpose


def test_what_the_named_arms_set():
    def settings(name):
        (arm,) = parse_arms([name])
        return load_settings(TrainConfig, None, arm.resolved(lambda: (["a", "b", "c", "d", "e"], "c"))).align

    assert settings("lisa").model_dump() == TrainConfig().align.model_dump()
    assert settings("lisa-normalised").weighting == "normalised" and settings("lisa-min-snr").weighting == "min-snr"
    assert settings("shuffled").target == "shuffled" and settings("early-stop").schedule == "until-done"
    assert settings("multi-layer").layer == ["b", "c", "d"]


def test_layers_are_spread_around_the_default():
    down = [*[f"down.{i}" for i in range(12)], "mid"]
    assert spread_layers(down, "down.5") == ["down.2", "down.5", "down.8"]
    assert spread_layers(["block.0", "block.1"], "block.1") == ["block.0", "block.1"]
    assert spread_layers(["mid"], "mid") == ["mid"]
    with pytest.raises(LisaError, match=r"'own' is not among the side network's layers.*Choices: down\.0, mid"):
        spread_layers(["down.0", "mid"], "own")


def test_arms_written_out():
    texts = [
        "plain,lisa",
        "align.weight=1",
        "two:align.layer=[mid, down.5];align.weight=0.1",
        "hot:plain;train.ema=0.9",
    ]
    arms = parse_arms(texts)
    assert [arm.name for arm in arms] == ["plain", "lisa", "align.weight=1", "two", "hot"]
    assert arms[3].overrides == ("align.layer=[mid, down.5]", "align.weight=0.1")
    assert arms[4].overrides == ("align.enabled=false", "train.ema=0.9")
    assert load_settings(TrainConfig, None, arms[3].overrides).align.layer == ["mid", "down.5"]
    (unnamed, other) = parse_arms(["align.layer=[mid,down.5],align.layer=mid"])
    assert (unnamed.name, other.name) == ("align.layer=mid_down.5", "align.layer=mid")
    (fewer,) = parse_arms(["x:multi-layer;align.layer=mid"])  # what comes later holds
    assert fewer.resolved(lambda: pytest.fail("asked for layers"))[-1] == "align.layer=mid"


def test_names_of_arms_for_a_report():
    """Of folders, of known arms, and of those written out, which may be planned."""
    folders = ["recipe", "align.weight=1", "_by hand", "lr=1 (old)"]
    assert arm_names(["recipe,lisa", "plain,recipe"], folders) == ["recipe", "lisa", "plain"]
    assert arm_names(["planned:preset=sooner;align.layer=[a, b]", "align.layer=[a, b],_by hand"], folders) == [
        "planned",
        "align.layer=a_b",
        "_by hand",
    ]
    assert arm_names(["align.weight=1,lr=1 (old)"], folders) == ["align.weight=1", "lr=1 (old)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recpie", "unknown arm 'recpie' .did you mean 'recipe'"),
        ("../x", r"unknown arm '../x'.*Choices: recipe, plain"),
        ("../x:lisa", "cannot be called '../x'"),
        (" , ", "no arm was named.*Choices: recipe, plain"),
    ],
)
def test_names_that_no_report_can_have(text, message):
    with pytest.raises(LisaError, match=message):
        arm_names([text], ["recipe"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisa-normalized", "unknown arm 'lisa-normalized' .did you mean 'lisa-normalised'"),
        ("x:lisa;plian", "unknown arm 'plian' in 'x:lisa;plian'"),
        ("lisa,lisa", "two arms called 'lisa'"),
        ("data.condition=depth", "sets data.condition, which must be the same in all arms"),
        ("x:train.steps=5", "sets train.steps"),
        ("seed=3", "sets seed"),
        ("x:=3", "has no name before its '='"),
        ("../x:lisa", "cannot be called"),
        ("cache:lisa", "cannot be called 'cache'"),
        (" , ", "no arm was named"),
    ],
)
def test_what_is_no_arm(text, message):
    with pytest.raises(LisaError, match=message):
        parse_arms([text])
