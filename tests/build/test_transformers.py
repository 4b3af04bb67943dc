"""Whole trainings on the transformer families: cached contexts, decoder, average, samples, and what is left behind."""

from __future__ import annotations

import diffusers
import pytest

import lisa
import runs
from conformance import tiny_hunyuan, tiny_qwen, tiny_sana, tiny_zimage
from lisa.common.runfolder import RunFolder
from lisa.pairs import pair_spec

# Shallow, so that a run takes seconds: the aligned layer is then not the default one.
FAMILIES = {
    "hunyuan-controlnet": (lambda path: tiny_hunyuan.make_folder(path, layers=6), {"align__layer": "block.1"}),
    "sana-controlnet": (tiny_sana.make_folder, {"side__depth": 2, "align__layer": "block.1"}),
    "qwen-controlnet": (tiny_qwen.make_folder, {}),
    "zimage-controlnet": (tiny_zimage.make_folder, {"side__depth": 2, "align__layer": "block.1"}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_training(name, tmp_path):
    make, changes = FAMILIES[name]
    folder = make(tmp_path / "model")
    raw = runs.settings(
        tmp_path / "run", folder, data__size=64, sample__steps=2, train__ema=0.9, log__held_out_every=1, **changes
    )
    raw["model"]["pair"] = name
    summary = lisa.train(raw, quiet=True)
    assert summary["steps"] == 2 and summary["fidelity"]["samples"] == 2
    steps = list(RunFolder(tmp_path / "run").read_events("train"))
    assert len(steps) == 2 and all(event["alignment"] > 0 for event in steps)
    kind = getattr(diffusers, pair_spec(name).side_kind)
    _, found = kind.from_pretrained(tmp_path / "run" / "side_network", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    # Another run starts from it: the blocks fit, and nothing was saved that belongs to the main network.
    raw |= {"out": str(tmp_path / "more"), "side": {"init": str(tmp_path / "run")}}
    assert lisa.train(raw, quiet=True)["steps"] == 2
