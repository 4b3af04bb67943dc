"""Trainings in bfloat16 with pictures on the way, through accelerate: who runs in what, and what cannot be drawn."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import lisa
import runs
import tiny
from conformance import row as rows
from conformance import tiny_sana, tiny_sd3, tiny_sdxl, tiny_zimage
from lisa.build import parts
from lisa.build.launch import session
from lisa.build.training import _prepare
from lisa.common.errors import LisaError
from lisa.common.runfolder import RunFolder
from lisa.pairs.shell import shell_of
from lisa.sample.pictures import BrokenPictures, Request, SamplerSettings, sample_pictures, set_solver
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

# The pipelines of both are given a shell around the side network; of SD3 only in the layout of the 8B ControlNets.
SHELLED = {
    "zimage-controlnet": (tiny_zimage.make_folder, None, {"side__depth": 2}),
    "sd3-controlnet": (partial(tiny_sd3.make_folder, version="3.5", t5=False), tiny_sd3.make_large_side, {}),
}


@pytest.mark.parametrize("name", SHELLED)
def test_a_training_with_pictures(name, tmp_path):
    make, make_side, changes = SHELLED[name]
    if make_side is not None:
        changes = changes | {"side__init": str(make_side(tmp_path / "side"))}
    raw = runs.settings(
        tmp_path / "run", make(tmp_path / "model"), data__size=64, align__layer="block.1",
        log__samples_every=1, log__samples=1, train__mixed_precision="bf16", **changes,
    )  # fmt: skip
    raw["model"]["pair"] = name
    summary = lisa.train(raw, quiet=True)
    assert summary["steps"] == 2 and summary["fidelity"] is not None
    assert [event["path"] for event in RunFolder(tmp_path / "run").read_events("samples")] == [
        "step-000001.png",
        "step-000002.png",
    ]


def test_accelerate_leaves_nothing_on_the_module(sd_small):
    """Its patched forward would answer in float32; what it leaves in place of it is bound to this instance."""
    pair, changed = tiny.make_pair(sd_small), tiny.make_pair(sd_small)
    own = changed.side.module.forward = lambda *args: None  # somebody else's is left alone
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    for each in (pair, changed):
        _prepare(accelerator, each, None)
    assert "forward" not in pair.side.module.__dict__
    left = changed.side.module.__dict__["forward"]
    assert getattr(left, "__func__", left) is own


@pytest.mark.parametrize(("precision", "fused"), [("no", True), ("bf16", False)])
def test_attention_on_the_cpu(precision, fused):
    """In bfloat16 in its parts, which is faster there; what people have set is back afterwards."""
    with session(check_settings(TrainConfig, {"train": {"mixed_precision": precision}, "log": {"tracker": "none"}})):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
    assert torch.backends.cuda.flash_sdp_enabled()


def test_what_is_recomputed_comes_from_the_same_kernel(sd_small, tmp_path):
    """Checkpointing runs parts of the network again in the backward pass, and refuses what comes out otherwise."""
    changes = {"train__mixed_precision": "bf16", "train__learning_rate": 1e-2}
    for name, recomputed in (("kept", False), ("recomputed", True)):
        runs.train(tmp_path / name, sd_small, side__gradient_checkpointing=recomputed, **changes)
    ours, theirs = (runs.weights(tmp_path / name) for name in ("kept", "recomputed"))
    names = [name for name in ours if name.startswith("side_network")]
    assert names and all(ours[name] == theirs[name] for name in names)


class Itself(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part = torch.nn.Linear(1, 1)

    def forward(self):
        return self


def test_a_shell_runs_itself():
    module = Itself()
    module.forward = module.forward
    shell = shell_of(module)
    assert shell() is shell and module() is module and shell.part is module.part
    shell.part = None
    assert module.part is not None


def watch(modules, run):
    """By name of the module: whether its first call was under autocast, and the types of what it was given."""
    seen = {}

    def look(name, _module, args, options):
        given = [v for v in (*args, *options.values()) if isinstance(v, torch.Tensor) and v.is_floating_point()]
        types = {value.dtype for value in given if value.ndim > 2}
        seen.setdefault(name, (torch.is_autocast_enabled("cpu"), types))

    hooks = [m.register_forward_pre_hook(partial(look, name), with_kwargs=True) for name, m in modules.items()]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.fixture(params=["sdxl-controlnet", "sana-controlnet"])
def halved(request, tmp_path):
    row = {row.pair: row for row in (tiny_sdxl.ROWS[0], *tiny_sana.ROWS)}[request.param]
    pair = rows.make_pair(row, tmp_path)
    pair.main.to(torch.device("cpu"), torch.bfloat16)
    return pair, row


def test_training_runs_the_main_network_as_it_is_stored(halved):
    """Autocast would undo what it computes in float32 on purpose, such as Sana's linear attention."""
    pair, row = halved
    inputs, target = rows.make_inputs(pair, row.sizes[0])

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            prediction = pair.predict(inputs)
        torch.nn.functional.mse_loss(prediction.controlled.float(), target).backward()

    seen = watch({"main": pair.main.network, "side": pair.side.module}, step)
    assert seen["main"] == (False, {torch.bfloat16}) and seen["side"][0]
    gradients = [p.grad for p in pair.side.module.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 for grad in gradients if grad is not None)
    assert sum(grad is not None and bool(grad.any()) for grad in gradients) > 0.8 * len(gradients)


@pytest.mark.parametrize("autocast", [True, False])
def test_sampling_runs_each_network_as_training_does(halved, autocast):
    pair, _ = halved
    pipeline = pair.pipeline()
    set_solver(pipeline)
    size = 8 * pair.main.latent_factor
    wanted = [Request("0", "a cat", np.zeros((size, size, 3), np.uint8), 1)]

    def draw():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            list(sample_pictures(pipeline, wanted, SamplerSettings(1, 1.0), pair.call))

    inside = next(part for part in pair.side.module.modules() if isinstance(part, torch.nn.Conv2d))
    seen = watch({"main": pair.main.network, "side": inside, "decoder": pipeline.vae.decoder}, draw)
    assert seen["main"] == (False, {torch.bfloat16}) and seen["decoder"] == (False, {torch.float32})
    assert seen["side"][0] == autocast and (autocast or seen["side"][1] == {torch.float32})
    assert tiny.traces(pair.side.module) == tiny.traces(pipeline.vae) == {}
    assert not {"encode", "decode", "forward"} & (pipeline.vae.__dict__.keys() | pair.side.module.__dict__.keys())


def test_pictures_that_are_not_finite_are_refused(sd_small):
    pair = tiny.make_pair(sd_small)
    pipeline = pair.pipeline()
    set_solver(pipeline)
    wanted = [Request(name, "a", np.zeros((32, 32, 3), np.uint8), 1) for name in ("one", "two")]
    decode = pipeline.vae.decode

    def broken(latents, **options):
        (pixels,) = decode(latents, **options)
        pixels[1] = torch.nan
        return (pixels,)

    pipeline.vae.decode = broken
    with pytest.raises(BrokenPictures, match=r"^the pictures sampled for 'two' are not finite\..*bf16"):
        list(sample_pictures(pipeline, wanted, SamplerSettings(1, 1.0), pair.call))


def test_a_training_survives_them(sd_small, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise BrokenPictures("not finite")

    monkeypatch.setattr("lisa.build.result.sample_requests", broken)
    summary = lisa.train(runs.settings(tmp_path / "run", sd_small, log__samples_every=1), quiet=True)
    assert summary["steps"] == 2 and summary["fidelity"] is None and summary["picture"] is None
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["picture"] is None
    steps = [event["step"] for event in RunFolder(tmp_path / "run").read_events("broken_pictures")]
    assert steps == [1, 2, 2, 2] and "note: step 1: not finite" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["flux-controlnet", "qwen-controlnet", "sana-controlnet", "zimage-controlnet"])
def test_families_that_overflow_in_half_precision(name, tmp_path):
    """Before anything is loaded: there is no such folder."""
    raw = runs.settings(tmp_path / "run", tmp_path / "nowhere", train__mixed_precision="fp16")
    raw["model"]["pair"] = name
    with pytest.raises(LisaError, match=rf"mixed_precision=fp16: {name} leaves float16's range .*Use .*=bf16"):
        parts.build_pair(check_settings(TrainConfig, raw))
    with pytest.raises(LisaError, match="there is no folder"):
        raw["model"]["pair"] = "sd3-controlnet"
        parts.build_pair(check_settings(TrainConfig, raw))
