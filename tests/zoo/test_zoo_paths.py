"""Embedded models are found by name; what is missing is told."""

from __future__ import annotations

import pytest

import lisa
from lisa import zoo
from lisa.common.errors import LisaError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A zoo of our own: one whole model, one recipe whose model is not there, one folder that is no model."""
    (tmp_path / "whole" / "model").mkdir(parents=True)
    (tmp_path / "whole" / "model" / "model_index.json").write_text("{}")
    (tmp_path / "lost").mkdir()
    for name in ("whole", "lost"):
        (tmp_path / name / "recipe.yaml").write_text("")
    (tmp_path / "__pycache__").mkdir()
    monkeypatch.setattr(zoo, "files", lambda package: tmp_path)
    return tmp_path


def test_names_and_path(shelf):
    assert zoo.names() == ["lost", "whole"]
    assert zoo.path("whole") == str(shelf / "whole" / "model")


def test_unknown_name(shelf):
    with pytest.raises(LisaError, match=r"unknown embedded model 'hole' .did you mean 'whole'.*Choices: lost, whole"):
        zoo.path("hole")


def test_missing_files(shelf):
    with pytest.raises(LisaError, match=r"'lost' is not in this installation.*lisa pretrain .*recipe.yaml"):
        zoo.path("lost")


def test_inside_an_archive(monkeypatch):
    monkeypatch.setattr(zoo, "files", lambda package: object())
    with pytest.raises(LisaError, match="inside an archive"):
        zoo.names()


def test_the_real_one_is_listed():
    assert "tiny-sd" in lisa.zoo.names()
