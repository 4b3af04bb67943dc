"""Configurations: every problem in one message, with the value, the choices and the nearest name."""

from __future__ import annotations

import pytest

from lisa.common.errors import LisaError
from lisa.train.config import TrainConfig
from lisa.train.settings import Settings, changed_settings, check_settings, load_settings, merge, save_settings


def problem(*overrides, file=None):
    with pytest.raises(LisaError) as caught:
        load_settings(TrainConfig, file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_overrides_stand_above_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {steps: 3, batch_size: 2}\nout: runs/a\n")
    config = load_settings(TrainConfig, file, ["train.steps=7", "train.learning_rate=1e-3", "data.size=[32,64]"])
    assert (config.train.steps, config.train.batch_size, config.train.learning_rate) == (7, 2, 1e-3)
    assert config.data.height_width == (32, 64) and str(config.out) == "runs/a"
    assert load_settings(TrainConfig).align.weight == 0.2, "the reference"


def test_a_bare_no_is_a_precision(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {mixed_precision: no}\n")
    assert load_settings(TrainConfig, file).train.mixed_precision == "no"
    assert load_settings(TrainConfig, None, ["train.mixed_precision=no"]).train.mixed_precision == "no"
    assert "mixed_precision: Input should be 'no', 'fp16' or 'bf16'" in problem("train.mixed_precision=yes")


def test_every_problem_is_in_one_message():
    message = problem(
        "train.stpes=3",
        "steps=3",
        "model.pair=sd-controlnt",
        "data.size=abc",
        "data.cache=[latnts]",
        "align.weight=-1",
        "align.weighting=plian",
        "align.schedule=never",
        "train.mixed_precision=fp8",
        "train.learning_rate=.inf",
        "train.betas=[0.9,1.5]",
        "train.batch_size=0",
        "log.held_out_every=x",
        "bogus=1",
    )
    lines = message.splitlines()
    assert lines[0] == "the configuration has 14 problems:" and len(lines) == 15
    for expected in (
        "train.stpes: no such setting, did you mean 'steps'?",
        "steps: no such setting, did you mean 'train.steps' or 'sample.steps'?",
        "animatediff-controlnet, did you mean 'sd-controlnet'? (got 'sd-controlnt')",
        "data.size: Input should be a valid integer",
        "data.cache.0: Input should be 'latents', 'text' or 'conditions' (got 'latnts')",
        "align.weight: Input should be greater than or equal to 0 (got -1)",
        "align.weighting: must be one of plain, normalised, min-snr, did you mean 'plain'? (got 'plian')",
        "align.schedule: must be one of constant, cosine, until-done (got 'never')",
        "train.mixed_precision: Input should be 'no', 'fp16' or 'bf16' (got 'fp8')",
        "train.learning_rate: Input should be a finite number (got inf)",
        "train.betas.1: Input should be less than 1 (got 1.5)",
        "train.batch_size: Input should be greater than or equal to 1 (got 0)",
        "log.held_out_every: Input should be a valid integer",
        "bogus: no such setting (there are: out, seed,",
    ):
        assert sum(expected in line for line in lines) == 1, expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps"], "the override 'train.steps' has no '='. Write overrides as section.key=value"),
        (["=5"], "the override '=5' has no name before its '='"),
        (["resume=latest", "overwrite=true"], "resume and overwrite exclude each other"),
        (["align.warmup=9", "train.steps=9"], "align.warmup is 9 of 9 steps, so nothing would learn to control"),
        (["train.lr_schedule=polynomial", "train.learning_rate=1e-7"], "falls to 1e-07; set train.learning_rate above"),
        (["align.teacher=0.5", "align.target=shuffled"], "teacher and target=shuffled exclude each other"),
        (["align.target=shuffled", "train.batch_size=1"], "align.target=shuffled needs another sample in the batch"),
        (["data.source={x"], "the overrides cannot be read"),
        (["data.source=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["data.size=8"], "data.size: at least 16 pixels (got 8)"),
        (["data.held_out=1"], "data.held_out: Input should be greater than or equal to 2 (got 1)"),
    ],
)
def test_one_problem(overrides, expected):
    message = problem(*overrides)
    assert expected in message and "\n." not in message and "'seed': 0" not in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "train: {steps: 1}\ntrain: {steps: 2}\n", "hello: \xff"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("latin-1"))
    assert str(file) in problem(file=file)


def test_a_missing_file(tmp_path):
    assert f"there is no configuration file {str(tmp_path / 'a.yaml')!r}" in problem(file=tmp_path / "a.yaml")
    assert "there is no configuration file" in problem(file=tmp_path)


def test_what_is_saved_can_be_loaded(tmp_path):
    config = check_settings(TrainConfig, {"out": tmp_path, "seed": 3, "data": {"size": [32, 48]}})
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(TrainConfig, tmp_path / "config.yaml") == config
    assert changed_settings(tmp_path / "config.yaml", config) == {}
    other = load_settings(TrainConfig, tmp_path / "config.yaml", ["train.batch_size=9", "resume=latest"])
    assert changed_settings(tmp_path / "config.yaml", other) == {"train.batch_size": (4, 9)}
    assert merge(None, []) == {}


def test_what_an_older_version_did_not_know_had_its_default(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {batch_size: 9}\n")
    assert changed_settings(tmp_path / "config.yaml", TrainConfig()) == {"train.batch_size": (9, 4)}


def test_every_setting_has_a_description():
    def walk(model, place=""):
        for name, field in model.model_fields.items():
            assert field.description, f"{place}{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                walk(field.annotation, f"{place}{name}.")

    walk(TrainConfig)
