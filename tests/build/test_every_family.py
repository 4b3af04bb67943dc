"""Whole trainings of every family: cached contexts, decoder, average, samples, and what is left behind."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest

import lisa
import runs
import tiny
from conformance import tiny_flux, tiny_hunyuan, tiny_qwen, tiny_sana, tiny_sd3, tiny_sdxl, tiny_zimage
from conformance.table import ROWS, VIDEO_ROWS
from lisa.build import condition_start
from lisa.common.runfolder import RunFolder
from lisa.core.decoder import LikelihoodDecoder
from lisa.pairs import pair_spec
from lisa.sides.embedding import find_condition_embedding, init_condition_embedding

# Shallow, so that a run takes seconds: the aligned layer is then not always the default one.
FAMILIES = {
    "sdxl-controlnet": (tiny_sdxl.make_folder, {}),
    "sd-t2i-adapter": (partial(tiny.make_folder, factor=8, levels=3), {}),
    "sdxl-t2i-adapter": (tiny_sdxl.make_folder, {}),
    "hunyuan-controlnet": (lambda path: tiny_hunyuan.make_folder(path, layers=6), {"align__layer": "block.1"}),
    "sd3-controlnet": (partial(tiny_sd3.make_folder, layers=2), {"align__layer": "block.0"}),
    "flux-controlnet": (tiny_flux.make_folder, {}),
    "sana-controlnet": (tiny_sana.make_folder, {"side__depth": 2, "align__layer": "block.1"}),
    "qwen-controlnet": (tiny_qwen.make_folder, {}),
    "zimage-controlnet": (tiny_zimage.make_folder, {"side__depth": 2, "align__layer": "block.1"}),
}
CLIPS = ("svd-controlnet", "wan-vace", "animatediff-controlnet")
ELSEWHERE = {
    "sd-controlnet": "test_training.py",
    "sdxl-controlnet-union": "test_parts.py",
    **dict.fromkeys(CLIPS, "test_video.py"),
}


def test_every_pair_is_trained_somewhere():
    assert {row.pair for row in [*ROWS, *VIDEO_ROWS]} == FAMILIES.keys() | ELSEWHERE.keys()


def watch_starts(monkeypatch):
    """The networks whose condition embedding is started by the data."""
    started = []

    def start(network, run, batches, *, latent):
        started.append(network)
        init_condition_embedding(network, run, batches, latent=latent)

    monkeypatch.setattr(condition_start, "init_condition_embedding", start)
    return started


@pytest.mark.parametrize("name", FAMILIES)
def test_training(name, tmp_path, monkeypatch):
    make, changes = FAMILIES[name]
    spec, decoded = pair_spec(name), []
    decode = LikelihoodDecoder.forward

    def watched(self, feature, timesteps, size, x_t=None):
        decoded.append(x_t is not None and bool(self.x_t_channels))
        return decode(self, feature, timesteps, size, x_t)

    monkeypatch.setattr(LikelihoodDecoder, "forward", watched)
    started = watch_starts(monkeypatch)
    folder = make(tmp_path / "model")
    raw = runs.settings(
        tmp_path / "run", folder, data__size=64, sample__steps=2, train__ema=0.9, log__held_out_every=1, **changes
    )
    raw["model"]["pair"], raw["side"] = name, {**raw.get("side", {}), "condition_init": "auto"}
    summary = lisa.train(raw, quiet=True)
    assert summary["steps"] == 2 and summary["fidelity"]["samples"] == 2
    assert set(decoded) == {not spec.reference_side().sees_x_t}, "the decoder is given what the side network lacks"
    has_embedding = find_condition_embedding(spec.reference_side().module) is not None
    assert len(started) == has_embedding and has_embedding == ("t2i" not in name)
    run = RunFolder(tmp_path / "run")
    steps = list(run.read_events("train"))
    assert len(steps) == 2 and all(event["alignment"] > 0 for event in steps)
    assert len(list(run.read_events("held_out"))) >= 2 and list((tmp_path / "run" / "samples").glob("*.png"))
    kind = getattr(diffusers, spec.side_kind)
    _, found = kind.from_pretrained(tmp_path / "run" / "side_network", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    # Another run starts from it: the blocks fit, and nothing was saved that belongs to the main network.
    raw |= {"out": str(tmp_path / "more"), "side": {"init": str(tmp_path / "run"), "condition_init": "auto"}}
    assert lisa.train(raw, quiet=True)["steps"] == 2
    assert len(started) == has_embedding, "what has learnt its embedding keeps it"


def test_a_start_in_mixed_precision_with_borrowed_modules(tmp_path):
    """Z-Image's side network borrows the main network's modules, which are then in 16 bits."""
    make, changes = FAMILIES["zimage-controlnet"]
    raw = runs.settings(tmp_path / "run", make(tmp_path / "model"), data__size=64, sample__steps=2, **changes)
    raw["model"]["pair"], raw["side"]["condition_init"] = "zimage-controlnet", "lsuv"
    raw["train"]["mixed_precision"] = "bf16"
    assert lisa.train(raw, quiet=True)["steps"] == 2
