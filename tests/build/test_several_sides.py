"""lisa generate with several side networks: weights, conditions, stamps, what is refused; and judging for each."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fake_runs import fake_run
from lisa.build.chosen import choose_model, choose_sides, split_weight
from lisa.build.evaluation import evaluate
from lisa.build.generation import GenerateOptions, generate
from lisa.common.errors import LisaError
from lisa.data.images import load_rgb, save_png
from lisa.data.sources import ScenesSource
from lisa.data.split import held_out_split
from lisa.sides.loading import CONFIG_KEY

FAST = {"steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def two(sd_small, tmp_path_factory):
    """Runs for edges and for low resolution on the same scenes."""
    root = tmp_path_factory.mktemp("two")
    return fake_run(root / "edges", sd_small, "edges", 1), fake_run(root / "lowres", sd_small, "lowres", 2)


@pytest.fixture(scope="module")
def both(two, tmp_path_factory):
    """Pictures of both, and how they were made."""
    options = GenerateOptions(
        side=[f"{two[0]}=0.8", f"{two[1]}=0.5"], out=tmp_path_factory.mktemp("both"), batch=1, **FAST
    )
    return options, generate(options)


def pictures(folder):
    return {path.stem: load_rgb(path) for path in sorted(folder.glob("*.png"))}


def same(one, other):
    first, second = pictures(one), pictures(other)
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def refused(**options):
    with pytest.raises(LisaError) as caught:
        generate(GenerateOptions(**{**FAST, **options}))
    return str(caught.value)


def test_a_single_side_with_a_weight_is_the_run_at_that_scale(two, tmp_path):
    options = GenerateOptions(side=f"{two[0]}=0.8", out=tmp_path / "a", count=2, **FAST)
    assert generate(options)["made"] == 2
    assert generate(GenerateOptions(run=two[0], scale=0.8, out=tmp_path / "a", count=2, **FAST))["kept"] == 2
    generate(GenerateOptions(run=two[0], scale=0.8, out=tmp_path / "b", count=2, **FAST))
    generate(GenerateOptions(run=two[0], out=tmp_path / "c", count=2, **FAST))
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")


def test_each_side_network_reads_the_condition_of_its_own_run(two, both, sd_small, tmp_path):
    """The same pictures from condition folders, in the order of the side networks; in the other order, others."""
    assert both[1]["made"] == 4
    source = ScenesSource(["edges", "lowres"], seed=1, count=16, size=32)
    prompts = {}
    for index in held_out_split(source.keys, 4).held_out:
        sample = source[index]
        prompts[sample.key] = sample.caption
        save_png(sample.condition[..., :3].copy(), tmp_path / "edges" / f"{sample.key}.png")
        save_png(sample.condition[..., 3:].copy(), tmp_path / "lowres" / f"{sample.key}.png")
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    keys = list(prompts)  # held-out order; files come sorted by name, and seeds go by order
    for number, key in enumerate(keys):
        for order in ("edges lowres", "lowres edges"):
            options = GenerateOptions(
                side=both[0].side,
                model=str(sd_small),
                condition=[tmp_path / name / f"{key}.png" for name in order.split()],
                prompts=tmp_path / "prompts.json",
                out=tmp_path / order,
                seed=number,
                batch=1,
                **FAST,
            )
            generate(options)
    ours, theirs = pictures(both[0].out), pictures(tmp_path / "edges lowres")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    swapped = pictures(tmp_path / "lowres edges")
    assert all(not np.array_equal(ours[key], swapped[key]) for key in ours)


def test_folders_are_matched_by_name(two, sd_small, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    for name, order in {"a": "xyz", "b": "zyx"}.items():
        for key in order:
            save_png(picture["xyz".index(key)], tmp_path / name / f"{key}.png")
    options = GenerateOptions(
        side=[str(two[0] / "side_network"), str(two[1] / "side_network")],
        model=str(sd_small),
        condition=[tmp_path / "a", tmp_path / "b"],
        prompt="x",
        out=tmp_path / "out",
        **FAST,
    )
    assert generate(options)["made"] == 3
    generate(replace(options, condition=[tmp_path / "a"] * 2, out=tmp_path / "again"))
    assert same(tmp_path / "out", tmp_path / "again")
    save_png(picture[0], tmp_path / "b" / "y.png")
    assert "y.png' was not made with these settings" in refused(**options.__dict__)
    (tmp_path / "b" / "y.png").unlink()
    message = refused(**{**options.__dict__, "out": tmp_path / "no"})
    assert f"'{tmp_path}/a' holds 'y', '{tmp_path}/b' does not" in message
    message = refused(**{**options.__dict__, "condition": tmp_path / "a", "out": tmp_path / "no"})
    assert "--condition was given 1 time, needed are 1 for" in message
    assert not (tmp_path / "no").exists()


def test_scale_multiplies_all_weights_and_stamps_tell_them(two, both, tmp_path):
    out = tmp_path / "both"
    shutil.copytree(both[0].out, out)
    options = replace(both[0], out=out)
    assert generate(options)["made"] == 0
    assert generate(replace(options, side=[f"{two[0]}=1.6", str(two[1])], scale=0.5))["made"] == 0
    changes = [
        {"side": [f"{two[0]}=0.8", f"{two[1]}=0.6"]},
        {"side": [f"{two[0]}=0.8"]},
        {"side": [f"{two[1]}=0.5", f"{two[0]}=0.8"]},
        {"scale": 0.5},
    ]
    for change in changes:
        assert "was not made with these settings" in refused(**{**options.__dict__, **change})
    retrained = tmp_path / "retrained"
    shutil.copytree(two[1], retrained)
    again = replace(options, side=[f"{two[0]}=0.8", f"{retrained}=0.5"], out=tmp_path / "again", count=1)
    generate(again)
    weights = retrained / "side_network" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "was not made with these settings" in refused(**again.__dict__)
    settings = json.loads((tmp_path / "again" / "settings.json").read_text())
    assert settings["scale"] == [0.8, 0.5] and settings["side"][0] == str(two[0] / "side_network")


def test_the_same_pictures_are_judged_for_each_condition(two, both):
    edges, lowres = (evaluate(both[0].out, run=run) for run in two)
    assert (edges["protocol"], lowres["protocol"]) == ("scenes/edges", "scenes/lowres")
    assert edges["per_image"].keys() == lowres["per_image"].keys() and edges["samples"] == 4


def test_weights_are_split_off_at_the_last_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_weight("a/b") == ("a/b", 1.0)
    assert split_weight("owner/name=0.25") == ("owner/name", 0.25)
    assert split_weight("runs/lr=x/side") == ("runs/lr=x/side", 1.0)
    assert split_weight("runs/a=b=1e-1") == ("runs/a=b", 0.1)
    assert split_weight("lr=0.001") == ("lr", 0.001)
    (tmp_path / "lr=0.001").mkdir()
    assert split_weight("lr=0.001") == ("lr=0.001", 1.0)
    assert split_weight("lr=0.001=0.5") == ("lr=0.001", 0.5)
    for bad in ("a=-1", "a=nan", "a=inf"):
        with pytest.raises(LisaError, match="A weight is a number of at least 0"):
            split_weight(bad)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__scenes_seed": 2}, "hold out different pictures: data.scenes_seed is 1 and 2"),
        ({"data__size": 64}, "hold out different pictures: data.size is 32 and 64"),
        ({"data__held_out": 6}, "hold out different pictures: data.held_out is 4 and 6"),
        ({"model__path": "tiny-sd"}, "have different main networks: model.path is "),
        ({"model__pair": "sd-t2i-adapter"}, "model.pair is sd-controlnet and sd-t2i-adapter"),
    ],
)
def test_runs_that_do_not_belong_together(two, sd_small, tmp_path, changes, expected):
    other = fake_run(tmp_path / "other", sd_small, "lowres", **changes)
    assert expected in refused(side=[str(two[0]), str(other)], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused(two, sd_small, sd15, tmp_path):
    side = str(two[1] / "side_network")
    out = tmp_path / "out"
    assert "no condition image was named for " in refused(side=[str(two[0]), side], out=out)
    assert "no main network was named" in refused(side=[side, side], out=out)
    runs = [fake_run(tmp_path / f"sana{i}", sd_small, "edges", model__pair="sana-controlnet") for i in range(2)]
    message = refused(side=[str(run) for run in runs], out=out)
    assert "SanaControlNetPipeline takes one" in message and "Choices: sd-controlnet, " in message
    shutil.rmtree(runs[0] / "side_network")
    assert "has no side network yet" in refused(side=[str(run) for run in runs], out=out)
    assert "the side network does not fit" in refused(side=[str(run) for run in two], model=str(sd15), out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("config", "pair", "expected"),
    [
        ({"_class_name": "ControlNetModel"}, None, "sd-controlnet"),
        ({"_class_name": "ControlNetModel"}, "sdxl-controlnet", "sdxl-controlnet"),
        ({"_class_name": "ControlNetModel", "addition_embed_type": "text_time"}, None, "sdxl-controlnet"),
        ({"_class_name": "SD3ControlNetModel"}, None, "sd3-controlnet"),
        ({"_class_name": "T2IAdapter"}, None, "sd-t2i-adapter"),
        ({"_class_name": "T2IAdapter", "adapter_type": "full_adapter_xl"}, None, "sdxl-t2i-adapter"),
        (None, None, "sd-controlnet"),  # a Hub name, or a file of other programs
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_the_pair_of_a_side_network_without_a_run(tmp_path, config, pair, expected, single):
    """A folder, and a single file, which tells its configuration in its metadata."""
    path = tmp_path / "side.safetensors" if single else tmp_path
    if single:
        save_file({"a": torch.zeros(1)}, path, {} if config is None else {CONFIG_KEY: json.dumps(config)})
    elif config is not None:
        (path / "config.json").write_text(json.dumps(config))
    (side,) = choose_sides(None, [str(path)])
    assert choose_model("owner/model", None, [side], pair).pair == expected


def test_what_is_no_side_network(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(LisaError, match=r"holds a UNet2DConditionModel, which is no side network.*ControlNetModel"):
        choose_model("owner/model", None, choose_sides(None, [str(tmp_path)]))
