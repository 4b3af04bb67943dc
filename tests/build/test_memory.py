"""Whole trainings that save memory: adapters, quantised weights, encoders that leave; and what is refused first."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

import lisa
import runs
from conformance import tiny_flux, tiny_sd3
from lisa.build import memory, parts, result
from lisa.common.errors import LisaError
from lisa.sides.low_rank import is_adapted
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings
from lisa.train.step import ControlStep


def config(model, out, **changes):
    return check_settings(TrainConfig, runs.settings(out, model, **changes))


LOW = {
    "side__lora_rank": 2,
    "side__lora_alpha": 4.0,
    "side__gradient_checkpointing": True,
    "train__steps": 4,
    "train__ema": 0.9,
    "train__zero_lr_multiplier": 3.0,
    "train__accumulation": 2,
    "log__samples_every": 4,
    "log__held_out_every": 2,
}


def test_a_low_rank_training_interrupted_equals_uninterrupted(sd_small, tmp_path, monkeypatch):
    """And what it gives away is the main network's copy plus something of that rank."""
    whole, stopped = tmp_path / "whole", tmp_path / "parts"
    sampled = []
    sample = result.sample_requests

    def sampling(pipeline, *args):
        sampled.append(any(is_adapted(layer) for layer in pipeline.controlnet.modules()))
        return sample(pipeline, *args)

    monkeypatch.setattr(result, "sample_requests", sampling)
    lisa.train(runs.settings(whole, sd_small, **LOW), quiet=True)
    with monkeypatch.context() as patch:
        runs.signal_at(patch, 3)
        assert lisa.train(runs.settings(stopped, sd_small, **LOW, resume="latest"), quiet=True) is None
    assert lisa.train(runs.settings(stopped, sd_small, **LOW, resume="latest"), quiet=True)["steps"] == 4
    runs.assert_same(whole, stopped)
    assert sampled and not any(sampled), "pictures are of what is given away"
    names = [file.name for file in sorted((whole / "samples").glob("*.png"))]
    assert names and all((whole / "samples" / n).read_bytes() == (stopped / "samples" / n).read_bytes() for n in names)

    from diffusers import ControlNetModel

    side, found = ControlNetModel.from_pretrained(whole / "side_network", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    ours = side.state_dict()
    theirs = load_file(sd_small / "unet" / "diffusion_pytorch_model.safetensors")
    query = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    change = ours[query] - theirs[query]
    assert change.abs().max() > 0 and torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    embedding = "time_embedding.linear_1.weight"
    assert torch.equal(ours[embedding], theirs[embedding])
    assert ours["controlnet_cond_embedding.conv_in.weight"].shape[1] == 3 and ours["controlnet_mid_block.weight"].any()


def test_that_of_a_flow_transformer_too(tmp_path, monkeypatch):
    """Which reads latents of conditions, and pooled text."""
    whole, stopped = tmp_path / "whole", tmp_path / "parts"
    folder = tiny_sd3.make_folder(tmp_path / "model", layers=2)

    def train(out, **changes):
        raw = runs.settings(out, folder, **LOW, data__size=64, align__layer="block.0", **changes)
        raw["model"]["pair"] = "sd3-controlnet"
        return lisa.train(raw, quiet=True)

    train(whole)
    with monkeypatch.context() as patch:
        runs.signal_at(patch, 3)
        assert train(stopped, resume="latest") is None
    assert train(stopped, resume="latest")["steps"] == 4
    runs.assert_same(whole, stopped)
    (weights,) = (whole / "side_network").glob("*.safetensors")
    query = "transformer_blocks.0.attn.to_q.weight"
    change = load_file(weights)[query] - load_all(folder / "transformer")[query]
    assert change.abs().max() > 0 and torch.linalg.matrix_rank(change, rtol=1e-3) <= 2


def load_all(folder):
    """The weights in all shards."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_learning_rates_of_a_low_rank_training(sd_small, tmp_path):
    given = config(sd_small, tmp_path, side__lora_rank=2, train__learning_rate=0.01, train__zero_lr_multiplier=3.0)
    pair = parts.build_pair(given)
    optimizer, clip = parts.build_optimizer(given, pair, None, torch.device("cpu"))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in pair.side.module.named_parameters() if p.requires_grad}
    assert rates.keys() == {id(p) for p in named.values()} == {id(p) for p in clip["side"].parameters}
    for name, parameter in named.items():
        zero = name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out"))
        assert rates[id(parameter)] == pytest.approx(0.03 if zero else 0.01), name
    assert any("lora_A" in name for name in named) and not any(name.endswith("base_layer.weight") for name in named)


def test_without_encoders_a_training_is_the_same(sd_small, tmp_path, monkeypatch):
    """They are gone while it trains (nothing holds them), and back for the pictures."""
    changes = {"train__steps": 2, "log__samples_every": 1, "sample__guidance": 2.0}
    lisa.train(runs.settings(tmp_path / "kept", sd_small, **changes), quiet=True)
    alive, gone = [], []
    build, call = parts.build_pair, ControlStep.__call__

    def building(given):
        pair = build(given)
        modules = [*pair.main.encoder_modules("image"), *pair.main.encoder_modules("text")]
        alive.extend(weakref.ref(module) for module in modules)
        return pair

    def stepping(self, batch, step):
        gc.collect()
        gone.append([reference() is None for reference in alive] + [self.pair.main.pipeline.vae is None])
        return call(self, batch, step)

    monkeypatch.setattr(parts, "build_pair", building)
    monkeypatch.setattr(ControlStep, "__call__", stepping)
    lisa.train(runs.settings(tmp_path / "gone", sd_small, **changes) | offload(sd_small), quiet=True)
    assert gone == [[True, True, True]] * 2
    runs.assert_same(tmp_path / "kept", tmp_path / "gone")
    for step in (1, 2):
        ours, theirs = (tmp_path / out / "samples" / f"step-{step:06d}.png" for out in ("gone", "kept"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_encoders_leave_an_accelerator_unless_told_otherwise(sd_small, tmp_path):
    def to(device, **changes):
        return memory.offload_to(config(sd_small, tmp_path, **changes), torch.device(device))

    assert to("cuda") == "cpu" and to("cpu") == "none"
    assert to("cuda", data__cache=["text"]) == to("cuda", data__cache=["latents"]) == "none"
    assert to("cuda", model__offload_encoders="none") == "none"
    assert to("cpu", model__offload_encoders="disk") == "disk"


def offload(model, to="disk"):
    return {"model": {"path": str(model), "offload_encoders": to}}


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*args, **options):
        raise AssertionError("something was read before it was refused")

    monkeypatch.setattr("lisa.mains.pipeline_main.load_pipeline", read)
    monkeypatch.setattr(parts, "open_data", read)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"side__lora_alpha": 2.0}, "lora_alpha without lora_rank would do nothing"),
        ({"side__lora_targets": ["to_q"]}, "lora_targets without lora_rank"),
        ({"side__lora_rank": 0}, "side.lora_rank"),
        ({"model__dtype": "bfloat16"}, "model.dtype is bfloat16, but train.mixed_precision=no computes in float32"),
        (
            {"model__dtype": "float16", "train__mixed_precision": "bf16"},
            "model.dtype is float16, but train.mixed_precision=bf16 computes in bfloat16",
        ),
        ({"model__quantize": "nf4"}, "model.quantize=nf4 needs a 16-bit type to compute in; set train.mixed_precision"),
        (
            {"model__quantize": "int8", "model__dtype": "float32", "train__mixed_precision": "bf16"},
            "model.quantize=int8 needs a 16-bit type",
        ),
        (
            {"model__offload_encoders": "disk", "data__cache": ["text"]},
            "model.offload_encoders=disk needs latents in data.cache",
        ),
        ({"model__offload_encoders": "cpu"}, "model.offload_encoders=cpu: this machine trains on the CPU"),
        ({"model__offload_encoders": "disk", "model__path": "a.safetensors"}, "the encoders of a single file"),
        ({"side__lora_rank": 4, "model__pair": "sd-t2i-adapter"}, "a T2IAdapter is small and no copy"),
        (
            {"model__quantize": "nf4", "train__mixed_precision": "bf16"},
            "model.quantize=nf4 needs bitsandbytes",
        ),
    ],
)
def test_refused_before_anything_is_read(sd_small, tmp_path, monkeypatch, nothing_is_read, changes, expected):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    raw = runs.settings(tmp_path / "run", sd_small)
    for name, value in changes.items():
        section, key = name.split("__")
        raw.setdefault(section, {})[key] = value
    with pytest.raises(LisaError) as caught:
        lisa.train(raw, quiet=True)
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_mixed_precision_says_what_weights_are_read_into(sd_small, tmp_path):
    half = parts.build_pair(config(sd_small, tmp_path, train__mixed_precision="bf16"))
    assert half.main.network.dtype == half.main.pipeline.text_encoder.dtype == torch.bfloat16
    assert half.side.module.dtype == half.main.pipeline.vae.dtype == torch.float32
    raw = runs.settings(tmp_path, sd_small, train__mixed_precision="bf16")
    raw["model"]["dtype"] = "float32"
    assert parts.build_pair(check_settings(TrainConfig, raw)).main.network.dtype == torch.float32


@pytest.fixture
def quantising(monkeypatch):
    """A loader that is told to quantise: it remembers what it was told, and gives a network that holds no weights."""
    from diffusers import DiffusionPipeline

    from lisa.mains import weights

    told = []
    original = DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(cls, source, *, quantization_config=None, **options):
        pipeline = original(cls, source, **options)
        told.append((quantization_config, weakref.ref(pipeline.components[told_of(pipeline)])))
        if quantization_config is not None:
            told[-1] += ([reference() is None for _, reference in told[:-1]],)
            network = pipeline.components[told_of(pipeline)]
            network.hf_quantizer = object()
            for parameter in network.parameters():
                parameter.data = torch.zeros(1)
        return pipeline

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(weights, "_quantization", lambda wanted, network: (wanted.quantize, network))
    return told


def told_of(pipeline):
    return "unet" if "unet" in pipeline.components else "transformer"


@pytest.mark.parametrize("pair", ["sd-controlnet", "flux-controlnet"])
def test_a_copy_of_a_quantised_network_has_the_weights_themselves(pair, sd_small, tmp_path, quantising):
    """The main network is read whole, copied and let go, and only then read quantised."""
    folder = sd_small if pair == "sd-controlnet" else tiny_flux.make_folder(tmp_path / "model")
    raw = runs.settings(tmp_path / "run", folder, data__size=64, train__mixed_precision="bf16", align__enabled=False)
    raw["model"] |= {"pair": pair, "quantize": "nf4"}
    built = parts.build_pair(check_settings(TrainConfig, raw))
    (first, _), (second, _, first_is_gone) = quantising
    assert first is None and second == ("nf4", built.main.network_name) and first_is_gone == [True]
    raw["model"]["quantize"] = "none"
    plain = parts.build_pair(check_settings(TrainConfig, raw))
    new = {id(p) for p in built.side.new_parameters()}
    for (name, ours), theirs in zip(built.side.module.named_parameters(), plain.side.module.parameters(), strict=True):
        assert ours.dtype == torch.float32 and (id(ours) in new or torch.equal(ours, theirs)), name


def test_a_side_network_to_start_from_spares_the_second_reading(sd_small, tmp_path, quantising, finished_run):
    raw = runs.settings(tmp_path / "run", sd_small, train__mixed_precision="bf16", side__init=str(finished_run))
    raw["model"]["quantize"] = "int8"
    parts.build_pair(check_settings(TrainConfig, raw))
    assert [entry[0] for entry in quantising] == [("int8", "unet")]


def test_main_weights_follow_the_configuration(sd_small, tmp_path):
    assert memory.main_weights(config(sd_small, tmp_path)).dtype == torch.float32
    assert memory.main_weights(config(sd_small, tmp_path, train__mixed_precision="fp16")).dtype == torch.float16
