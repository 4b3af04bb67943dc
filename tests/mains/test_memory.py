"""What main networks hold in memory: the type they are read in, and encoders that leave and come back."""

from __future__ import annotations

import copy
import gc
import sys
import weakref

import pytest
import torch

import tiny
from conformance import row as rows
from conformance.table import ROWS, VIDEO_ROWS
from lisa.common.errors import LisaError
from lisa.mains.weights import Weights, check_quantization
from lisa.pairs import pair_spec

FAMILIES = list({pair_spec(row.pair).load_main: row for row in [*ROWS, *VIDEO_ROWS] if "t2i" not in row.pair}.values())
each_family = pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.pair)
BF16 = Weights(torch.bfloat16)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture
def read(monkeypatch):
    """Options of every pipeline that is read from a folder."""
    import diffusers

    seen = []
    original = diffusers.DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(cls, source, **options):
        seen.append(options)
        return original(cls, source, **options)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    return seen


@each_family
def test_weights_are_read_in_the_type_asked_for(row, root, read):
    """Not read in float32 and cast; the VAE is in float32 whatever is asked for."""
    folder = str(rows.model_folder(row, root))
    main = pair_spec(row.pair).load_main(folder, **row.load, weights=BF16)
    assert read[-1]["torch_dtype"] == {"default": torch.bfloat16, "vae": torch.float32}
    vae = main.component("vae")
    for module in [each for each in main.encoder_modules("text") if each is not vae]:
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    exact = pair_spec(row.pair).load_main(folder, **row.load)
    kept = set(main.network._keep_in_fp32_modules or ())  # by diffusers, whatever is asked for
    for (name, ours), theirs in zip(main.network.named_parameters(), exact.network.parameters(), strict=True):
        assert ours.dtype == (torch.float32 if kept & set(name.split(".")) else torch.bfloat16), name
        assert torch.equal(ours, theirs.to(ours.dtype)) and theirs.dtype == torch.float32, name


@each_family
def test_encoders_leave_memory_and_come_back_the_same(row, root):
    """Really let go of: nothing holds them. Read again, they give the same to the last bit."""
    main = pair_spec(row.pair).load_main(str(rows.model_folder(row, root)), **row.load)
    shape = [*([rows.FRAMES] if main.video else []), *[2 * main.size_multiple] * 2]
    pixels = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def context():
        if main.context_reads == "caption":
            return main.encode_text(rows.CAPTIONS)
        return main.encode_frame(pixels[:, :, 0], torch.tensor([8.0]), torch.tensor([127.0]), ["a"])

    first, moments = context(), main.encode_moments(pixels)
    encoders = [*main.encoder_modules("image"), *main.encoder_modules("text")]
    alive = [weakref.ref(module) for module in encoders] + [weakref.ref(next(m.parameters())) for m in encoders]
    del encoders
    main.offload_encoders("disk")
    gc.collect()
    assert [reference() for reference in alive] == [None] * len(alive)
    with pytest.raises(LisaError, match="dropped from memory"):
        context()
    with main.encoders():
        with main.encoders():
            again = context()
        assert torch.equal(main.encode_moments(pixels), moments)
        assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
        modules = [*main.encoder_modules("image"), *main.encoder_modules("text")]
        assert not any(p.requires_grad for module in modules for p in module.parameters())
        assert not any(module.training for module in modules)
        del modules
    assert not any(getattr(main.pipeline, name) for name in ("vae", *main.text_encoders))


def test_encoders_move_off_the_accelerator_and_back(sd15, monkeypatch):
    main = tiny.load_main(sd15)
    main._home = torch.device("meta")  # stands for an accelerator; nothing is moved there for real
    moves = []
    monkeypatch.setattr(type(main), "to", lambda self, device, dtype=None, only=None: moves.append((str(device), only)))
    monkeypatch.setattr(type(main.pipeline.vae), "device", torch.device("meta"))
    main.offload_encoders("cpu")
    assert moves == [("cpu", "encoders")]
    with main.encoders(), main.encoders():
        assert moves[1:] == [("meta", "encoders")]
    assert moves[2:] == [("cpu", "encoders")]


def test_only_what_is_asked_for_is_moved(sd15):
    main = tiny.load_main(sd15)
    main.to(torch.device("meta"), only="encoders")
    assert main.pipeline.vae.device.type == main.pipeline.text_encoder.device.type == "meta"
    assert main.network.device.type == "cpu" and main.network.dtype == torch.float32
    main.to(torch.device("meta"), torch.bfloat16, only="network")
    assert main.network.device.type == "meta" and main.network.dtype == torch.bfloat16
    assert main.pipeline.vae.dtype == torch.float32


def test_encoders_made_in_memory_cannot_be_read_again(sd15):
    from lisa.mains.stable_diffusion import StableDiffusionMain

    main = StableDiffusionMain(copy.deepcopy(tiny.load_main(sd15).pipeline), "memory")
    with pytest.raises(LisaError, match=r"'memory' cannot be read again.*offload_encoders=cpu"):
        main.offload_encoders("disk")
    assert main.encode_text(["a"])


@pytest.fixture
def bitsandbytes(monkeypatch):
    """A stand-in that can be imported, and asked for its version, but does nothing."""
    import importlib.metadata
    import types

    version = importlib.metadata.version
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.48.0" if name == "bitsandbytes" else version(name)
    )


def test_quantised_weights_are_refused_where_they_cannot_be_had(monkeypatch, bitsandbytes):
    check_quantization("none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LisaError, match=r"model.quantize=nf4 runs on CUDA only.*lisa-diffusion\[bnb\].*quantize=none"):
        check_quantization("nf4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_quantization("nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ImportError
    with pytest.raises(LisaError, match=r"model.quantize=int8 needs bitsandbytes.*lisa-diffusion\[bnb\]"):
        check_quantization("int8")


def test_what_the_loader_is_told_about_quantisation(bitsandbytes):
    assert "quantization_config" not in BF16.options("unet")
    four = Weights(torch.bfloat16, "nf4").options("transformer")["quantization_config"].quant_mapping
    assert list(four) == ["transformer"], "the main network alone"
    config = four["transformer"]
    assert config.quantization_method() == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = Weights(torch.float16, "int8").options("unet")["quantization_config"].quant_mapping["unet"]
    assert eight.quantization_method() == "llm_int8" and not eight.llm_int8_has_fp16_weight
    assert Weights(torch.float16, "int8").plain == Weights(torch.float16)


def test_quantised_weights_are_neither_moved_nor_cast(sd15):
    main = tiny.load_main(sd15)
    main.network.hf_quantizer = object()
    main.to(torch.device("meta"), torch.bfloat16)
    assert main.network.device.type == "cpu" and main.network.dtype == torch.float32
    assert main.pipeline.vae.device.type == "meta"
