"""Presets: beneath what a file says, on top of a file where the command line names them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lisa.build.arms import parse_arms
from lisa.build.comparing import make_plan
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.train.config import TrainConfig
from lisa.train.presets import PRESETS, on_top, refuse_idle
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.quickstart import QUICKSTART_MODELS, quickstart_config
from lisa.train.settings import check_settings, load_settings, save_settings


@pytest.fixture(autouse=True)
def strong(monkeypatch):
    found = {"align": {"weight": 0.7, "warmup": 9}, "train": {"zero_lr_multiplier": 3.0}}
    monkeypatch.setitem(PRESETS, "strong", found)


@pytest.mark.parametrize("model", QUICKSTART_MODELS)
def test_the_quickstart_has_the_recipe_and_the_defaults_are_the_papers(model, tmp_path):
    recipe, usual = quickstart_config(out=tmp_path, model=model), TrainConfig()
    assert (recipe.side.condition_init, recipe.align.enabled, recipe.preset) == ("auto", False, "sooner")
    assert recipe.train.decoder_lr_multiplier == 0.1, "for who turns alignment on"
    assert (usual.side.condition_init, usual.align.enabled, usual.train.decoder_lr_multiplier) == ("default", True, 1.0)
    assert (usual.align.weight, usual.align.weighting, usual.align.target) == (0.2, "plain", "likelihood")


def test_the_quickstart_aligned_and_as_the_baseline(tmp_path):
    """Aligned: with the decoder's rate that the preset has for it. Plain: with nothing of the preset."""
    aligned, plain = (quickstart_config(out=tmp_path, **{how: True}) for how in ("aligned", "plain"))
    assert (aligned.side.condition_init, aligned.align.active, aligned.train.decoder_lr_multiplier) == (
        "auto",
        True,
        0.1,
    )
    assert (plain.side.condition_init, plain.align.active, plain.preset) == ("default", False, None)
    with pytest.raises(LisaError, match="the quickstart cannot be plain and aligned"):
        quickstart_config(out=tmp_path, plain=True, aligned=True)


def settings(file=None, *overrides):
    config = load_settings(TrainConfig, file, overrides)
    return config.align.weight, config.align.warmup, config.train.zero_lr_multiplier


def test_in_a_file_it_lies_beneath_the_others(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("preset: strong\nalign: {weight: 0.3}\n")
    assert settings(file) == (0.3, 9, 3.0)
    assert settings(file, "align.warmup=1") == (0.3, 1, 3.0)
    assert check_settings(TrainConfig, {"preset": "strong", "align": {"weight": 0.3}}).align.warmup == 9


def test_on_the_command_line_it_lies_on_top_of_the_file_and_what_stands_before(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("align: {weight: 0.3, layer: mid}\n")
    assert settings(file, "preset=strong") == (0.7, 9, 3.0)
    assert settings(file, "preset=strong", "align.weight=0.1") == (0.1, 9, 3.0)
    assert settings(file, "align.weight=0.1", "preset=strong") == (0.7, 9, 3.0)
    assert load_settings(TrainConfig, file, ["preset=strong"]).align.layer == "mid"
    assert settings(None, "preset=strong") == settings(file, "preset='strong'") == (0.7, 9, 3.0)


IDLE = [
    ["preset=sooner", "align.weight=0.5"],
    ["align.weight=0.5", "preset=sooner"],
    ["align.enabled=true", "preset=sooner", "align.weight=0.5"],
]


@pytest.mark.parametrize("given", IDLE)
def test_what_a_preset_that_does_not_align_would_ignore_is_refused(given, tmp_path):
    first = next(item for item in given if item.startswith("align."))
    message = f"{first} would do nothing, because the preset 'sooner' does not align"
    with pytest.raises(LisaError, match=message):
        refuse_idle(given, "sooner")
    with pytest.raises(LisaError, match=f"arm mine: {message}"):
        make_plan(None, [], parse_arms([f"mine:{';'.join(given)}"]), [0], tmp_path)
    failed = CliRunner().invoke(app, ["train", *given, f"out={tmp_path / 'run'}"])
    assert isinstance(failed.exception, LisaError) and message in failed.exception.problem


def test_a_preset_of_the_file_or_of_all_arms_is_refused_alike(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("preset: sooner\n")
    arms = parse_arms(["mine:align.weight=0.5"])
    for place, common in ((file, []), (None, ["preset=sooner"])):
        with pytest.raises(LisaError, match="would do nothing"):
            make_plan(place, common, arms, [0], tmp_path)


def test_who_says_whether_to_align_may_set_the_rest(tmp_path):
    for said in ("align.enabled=true", "align.enabled=false"):  # false: --plain
        refuse_idle([*IDLE[0], said], "sooner")
    refuse_idle(["align.enabled=false", "preset=sooner"], "sooner")
    for preset in ("strong", None):  # one that says nothing of it; none
        refuse_idle(["align.weight=0.5"], preset)
    arms = parse_arms(["mine:preset=sooner;lisa;align.weight=0.5", "weak:lisa", "plain"])
    configs = make_plan(None, ["preset=sooner", "align.weight=0.3"], arms, [0], tmp_path).configs
    assert {arm: (c.align.enabled, c.align.weight) for (arm, _), c in configs.items()} == {
        "mine": (True, 0.5),
        "weak": (True, 0.3),
        "plain": (False, 0.3),
    }


def test_of_a_file_alignment_is_set_aside_by_the_preset_without_a_word(tmp_path):
    """Its settings may be for other trainings."""
    file = tmp_path / "a.yaml"
    file.write_text("align: {weight: 0.3}\n")
    assert settings(file, "preset=sooner")[0] == 0.3


def test_an_arms_preset_lies_on_top_of_what_all_arms_have(tmp_path):
    """And what the arm says after it on top of that."""
    arms = parse_arms(["plain", "recipe:preset=strong", "tuned:preset=strong;align.warmup=1"])
    plan = make_plan(None, ["train.zero_lr_multiplier=5", "align.weight=0.3"], arms, [0], tmp_path)
    found = {arm: config for (arm, _), config in plan.configs.items()}
    values = {arm: (c.align.weight, c.align.warmup, c.train.zero_lr_multiplier) for arm, c in found.items()}
    assert values == {"plain": (0.3, 0, 5.0), "recipe": (0.7, 9, 3.0), "tuned": (0.7, 1, 3.0)}


def test_an_arms_preset_sets_nothing_that_all_arms_must_have_alike(monkeypatch):
    monkeypatch.setitem(PRESETS, "larger", {"data": {"size": 96}})
    with pytest.raises(LisaError, match=r"'big:preset=larger' sets data\.size, which must be the same"):
        parse_arms(["big:preset=larger"])


def test_arms_that_differ_in_the_presets_name_alone_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "alias", {"align": {"weight": 0.2}})
    with pytest.raises(LisaError, match="the arms 'lisa' and 'named' are the same"):
        make_plan(None, [], parse_arms(["lisa", "named:lisa;preset=alias"]), [0], tmp_path)


def test_a_configuration_without_presets_has_none():
    with pytest.raises(LisaError) as error:
        load_settings(PretrainConfig, None, ["preset=strong"])
    assert "preset: no such setting" in str(error.value) and "zero_lr_multiplier" not in str(error.value)


def test_a_saved_configuration_is_the_same_again(tmp_path):
    config = load_settings(TrainConfig, None, ["preset=strong", "align.weight=0.1"])
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(TrainConfig, tmp_path / "config.yaml") == config and config.preset == "strong"


def test_sections_that_are_none_are_still_refused():
    with pytest.raises(LisaError, match="align"):
        check_settings(TrainConfig, {"preset": "strong", "align": 3})


@pytest.mark.parametrize("name", ["weak", 3, ["strong"]])
def test_an_unknown_preset(name):
    with pytest.raises(LisaError, match=r"preset: .*(one of .*strong|valid string)"):
        check_settings(TrainConfig, {"preset": name})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_configuration(name):
    assert check_settings(TrainConfig, {"preset": name}) != TrainConfig()


def test_neither_side_is_touched_or_shared():
    below, above = {"train": {"steps": 1}, "log": {"every": 2}}, {"train": {"warmup": 3}}
    merged = on_top(below, above)
    merged["log"]["every"] = merged["train"]["steps"] = 9
    assert (below, above) == ({"train": {"steps": 1}, "log": {"every": 2}}, {"train": {"warmup": 3}})
