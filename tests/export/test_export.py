"""``lisa export``: what it writes beside the tensors, what it refuses, and what takes its files."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lisa
import runs
from lisa.build import parts
from lisa.build.export import ExportOptions, export
from lisa.build.generation import GenerateOptions, generate
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.data.images import load_rgb
from lisa.export.metadata import architecture, public_name
from lisa.export.single_file import cast_weights
from lisa.pairs import pair_spec
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run, since its card is written anew."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def header(file):
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"], content[8 + size :]


@pytest.mark.parametrize("layout", ["diffusers-single", "original"])
def test_what_a_file_says_about_itself(run, layout, tmp_path):
    out = tmp_path / "my edges.safetensors"
    result = export(ExportOptions(run, out, layout))
    metadata, tensors = header(out)
    assert metadata["modelspec.hash_sha256"] == result["hash"] == "0x" + hashlib.sha256(tensors).hexdigest()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1" and metadata["modelspec.title"] == "my edges"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/controlnet"
    assert (metadata["modelspec.implementation"] == "diffusers") == (layout == "diffusers-single")
    summary = json.loads((run / "summary.json").read_text())
    assert metadata["lisa.base_model"] == summary["model"].rpartition("/")[2] == "small"
    assert (metadata["lisa.condition"], metadata["lisa.version"]) == ("edges", lisa.__version__)
    assert metadata["lisa.steps"] == "3" and metadata["lisa.pair"] == "sd-controlnet"
    assert json.loads(metadata["lisa.config"])["_class_name"] == "ControlNetModel"
    assert str(tmp_path) not in json.dumps(metadata) and summary["model"] not in json.dumps(metadata)


def test_nothing_that_is_shared_names_a_path_of_this_machine(run, tmp_path):
    """Also not where the weights once came from: diffusers keeps that in a configuration."""
    raw = runs.settings(tmp_path / "next", json.loads((run / "summary.json").read_text())["model"])
    raw["side"] = {"init": str(run)}
    pair = parts.build_pair(check_settings(TrainConfig, raw))
    pair.side.save(tmp_path / "saved")
    assert "_name_or_path" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    export(ExportOptions(run, tmp_path / "folder", "diffusers"))
    for folder in (tmp_path / "saved", tmp_path / "folder", run / "side_network"):
        for file in [*folder.glob("*.json"), *folder.glob("*.md")]:
            assert str(tmp_path.parent) not in file.read_text(), file


@pytest.mark.parametrize(
    ("pair", "config", "expected"),
    [
        ("sd-controlnet", {"cross_attention_dim": 768}, "stable-diffusion-v1/controlnet"),
        ("sd-controlnet", {"cross_attention_dim": 1024}, "stable-diffusion-v2/controlnet"),
        ("sdxl-t2i-adapter", {}, "stable-diffusion-xl-v1-base/t2i-adapter"),
        ("sana-controlnet", {}, "sana/controlnet"),
    ],
)
def test_architecture(pair, config, expected):
    assert architecture(pair, config) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/model", "owner/model"),
        ("tiny-sd", "tiny-sd"),
        ("/models/sd15", "sd15"),
        ("../models/a.safetensors", "a.safetensors"),
        ("C:\\models\\sd15", "sd15"),
    ],
)
def test_names_that_may_be_told(source, expected):
    assert public_name(source) == expected


@pytest.mark.parametrize("layout", ["diffusers", "diffusers-single", "original"])
def test_training_and_sampling_take_what_was_exported(run, layout, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    out = tmp_path / ("out" if layout == "diffusers" else "out.safetensors")
    export(ExportOptions(run, out, layout))
    raw = runs.settings(tmp_path / "next", summary["model"])
    raw["side"] = {"init": str(out)}
    pair = parts.build_pair(check_settings(TrainConfig, raw))
    expected = pair_spec("sd-controlnet").load_side(str(run)).module.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in pair.side.module.state_dict().items())
    pictures = []
    for side in (run / "side_network", out):
        options = GenerateOptions(run=run, side=str(side), out=tmp_path / "made", count=1, steps=1, overwrite=True)
        generate(options)
        pictures.append(load_rgb(next((tmp_path / "made").glob("*.png"))))
    assert np.array_equal(*pictures)
    with pytest.raises(LisaError, match="was not made with these settings"):  # a file's weights count as a folder's do
        cast = tmp_path / "cast.safetensors"
        export(ExportOptions(run, cast, dtype="fp16"))
        shutil.copyfile(cast, out) if out.is_file() else export(ExportOptions(run, out, layout, "fp16", True))
        generate(GenerateOptions(run=run, side=str(out), out=tmp_path / "made", count=1, steps=1))


def test_a_folder_in_another_format_and_back(run, tmp_path):
    """From a file, from a plain folder, and with the card."""
    export(ExportOptions(run, tmp_path / "a.safetensors", "original"))
    export(ExportOptions(tmp_path / "a.safetensors", tmp_path / "b", "diffusers"))
    export(ExportOptions(run / "side_network", tmp_path / "c", "diffusers"))
    export(ExportOptions(tmp_path / "c", tmp_path / "d", "diffusers"))
    weights = [
        (folder / "diffusion_pytorch_model.safetensors").read_bytes()
        for folder in (run / "side_network", tmp_path / "b", tmp_path / "c", tmp_path / "d")
    ]
    assert all(each == weights[0] for each in weights)
    card = (run / "side_network" / "README.md").read_bytes()
    assert (tmp_path / "c" / "README.md").read_bytes() == (tmp_path / "d" / "README.md").read_bytes() == card
    assert (tmp_path / "d" / "samples.png").is_file() and not (tmp_path / "b" / "README.md").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "ckpt"}, "unknown format 'ckpt'. Choices: diffusers, diffusers-single, original"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"source": "nowhere"}, "there is no side network in '{tmp}/nowhere'"),
        ({"source": "foreign.safetensors"}, "does not tell what kind of network it holds"),
        ({"source": "unet"}, "holds a UNet2DConditionModel, which is no side network. Choices: ControlNetModel"),
        ({"source": "early"}, "has no side network yet"),
        ({"source": "flux", "format": "original"}, "(flux-controlnet) has no format 'original'"),
        ({"source": "union", "format": "original"}, "Choices: diffusers, diffusers-single."),
        ({"out": "out.bin"}, "does not end with .safetensors"),
        ({"out": "out.safetensors", "format": "diffusers"}, "names a file"),
        ({"out": "there.safetensors"}, "is there already. Replace it with --overwrite"),
        ({"out": "full", "format": "diffusers"}, "is there already"),
        ({"out": "full", "format": "diffusers", "overwrite": True}, "holds no side network, so it is not replaced"),
        ({"out": "folder.safetensors"}, "is a folder"),
        ({"out": "there", "format": "diffusers"}, "is a file"),
        ({"out": "run", "format": "diffusers", "overwrite": True}, "is where the weights come from"),
        ({"out": "run/side_network/a.safetensors"}, "is where the weights come from"),
    ],
)
def test_refused(run, tmp_path, change, expected):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, kind in {
        "unet": "UNet2DConditionModel",
        "flux": "FluxControlNetModel",
        "union": "ControlNetUnionModel",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "early").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "early")
    for name in ("there", "there.safetensors", "full/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    paths = {name: tmp_path / change[name] for name in ("source", "out") if name in change}
    with pytest.raises(LisaError) as caught:
        export(ExportOptions(**{"source": run, "out": tmp_path / "new.safetensors", **change, **paths}))
    assert expected.replace("{tmp}", str(tmp_path)) in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_weights_that_a_type_cannot_hold():
    with pytest.raises(LisaError, match=r"'a' has weights up to 7e\+04, which fp16 cannot hold\. Export as bf16"):
        cast_weights({"a": torch.tensor([1.0, 7e4])}, "fp16")
    assert cast_weights({"a": torch.tensor([1.0, 7e4])}, "bf16")["a"].isfinite().all()
    assert cast_weights({"n": torch.tensor([3])}, "fp16")["n"].dtype == torch.int64


def test_the_verb(run, tmp_path):
    def invoke(*more):
        return CliRunner().invoke(app, ["export", str(run), *map(str, more)], catch_exceptions=False)

    out = tmp_path / "a.safetensors"
    result = json.loads(invoke("--out", out, "--format", "original", "--dtype", "fp16", "--json").stdout)
    assert {k: result[k] for k in ("out", "format", "dtype", "kind")} == {
        "out": str(out),
        "format": "original",
        "dtype": "fp16",
        "kind": "ControlNetModel",
    }
    weights = load_file(out)
    assert (result["bytes"], result["tensors"]) == (out.stat().st_size, len(weights))
    assert result["parameters"] == sum(value.numel() for value in weights.values())
    again = invoke("--out", out, "--overwrite")
    assert again.exit_code == 0 and "parameters as fp32" in again.stdout
    assert invoke().exit_code == 2  # --out must be named
