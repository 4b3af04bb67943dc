"""Every format out and in again: the same weights, the same pictures; and other code reads them the same way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from original_t2i import FullAdapter, LightAdapter

import tiny
from conformance import row as rows
from conformance.table import ROWS, VIDEO_ROWS
from lisa.build.export import ExportOptions, export, formats_of
from lisa.common.errors import LisaError
from lisa.export.single_file import DTYPES
from lisa.pairs import Pair, pair_names, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver
from lisa.sides.original import original_controlnet_names

# One row per pair, and those whose side network is built in another way.
CHOSEN = {row.pair: row for row in reversed([*ROWS, *VIDEO_ROWS])}
BUILT = [*CHOSEN.values(), *[row for row in ROWS if (row.label or row.init) and row is not CHOSEN[row.pair]]]
ORIGINAL = [row for row in ROWS if row.pair in ("sd-controlnet", "sdxl-controlnet", "sd-t2i-adapter")]
ORIGINAL += [CHOSEN["sdxl-t2i-adapter"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def saved(row, root, folder):
    """A pair whose side network lies in ``folder``."""
    pair = rows.make_pair(row, root)
    pair.side.module.eval()
    pair.side.save(folder)
    return pair


def same_weights(ours, theirs, dtype=torch.float32):
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name].to(dtype).float(), theirs[name]) for name in ours)


def picture(pair):
    size = [8 * pair.main.latent_factor] * 2
    condition = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pipeline = pair.pipeline()
    set_solver(pipeline)
    request = Request("0", "a cat", condition, seed=1)
    ((_, made),) = sample_pictures(pipeline, [request], SamplerSettings(steps=2, guidance=2.0), pair.call)
    return made


@pytest.mark.parametrize("row", BUILT, ids=str)
def test_single_file_with_diffusers_names(row, root, tmp_path):
    pair = saved(row, root, tmp_path / "side")
    file = tmp_path / "side.safetensors"
    export(ExportOptions(tmp_path / "side", file))
    assert load_file(file).keys() == pair.side.module.state_dict().keys()
    loaded = pair.spec.load_side(str(file))  # it tells its own configuration
    pair.spec.check_fit(pair.main, loaded)
    assert same_weights(pair.side.module.state_dict(), loaded.module.state_dict())
    inputs, _ = rows.make_inputs(pair, row.sizes[1])
    with torch.no_grad():
        assert torch.equal(pair.control(inputs), Pair(pair.spec, pair.main, loaded).control(inputs))


@pytest.mark.parametrize("row", ORIGINAL, ids=str)
def test_original_names_and_back(row, root, tmp_path):
    pair = saved(row, root, tmp_path / "side")
    file = tmp_path / "side.safetensors"
    export(ExportOptions(tmp_path / "side", file, "original"))
    assert not load_file(file).keys() & pair.side.module.state_dict().keys()
    loaded = pair.spec.load_fitting_side(pair.main, str(file))
    assert same_weights(pair.side.module.state_dict(), loaded.module.state_dict())
    loaded.module.requires_grad_(True).eval()
    assert (picture(pair) == picture(Pair(pair.spec, pair.main, loaded))).all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.pair == "sd-controlnet"], ids=str)
@pytest.mark.parametrize("layout", ["original", "diffusers-single"])
def test_diffusers_itself_loads_the_file(row, layout, root, tmp_path):
    """``from_single_file`` has its own table of original names."""
    from diffusers import ControlNetModel

    pair = saved(row, root, tmp_path / "side")
    export(ExportOptions(tmp_path / "side", tmp_path / "side.safetensors", layout))
    loaded = ControlNetModel.from_single_file(str(tmp_path / "side.safetensors"), config=str(tmp_path / "side"))
    assert same_weights(pair.side.module.state_dict(), loaded.state_dict())


def test_diffusers_converts_the_names_of_sdxl(root, tmp_path):
    """Its conversion forgets the embedding of sizes, whose names it has in a table."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, convert_controlnet_checkpoint

    pair = saved(CHOSEN["sdxl-controlnet"], root, tmp_path / "side")
    export(ExportOptions(tmp_path / "side", tmp_path / "side.safetensors", "original"))
    weights, ours = load_file(tmp_path / "side.safetensors"), pair.side.module.state_dict()
    theirs = convert_controlnet_checkpoint(dict(weights), pair.side.module.config)
    for name, original in DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"].items():
        theirs[name] = weights[f"control_model.{original}"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_of_the_public_controlnets():
    """Stable Diffusion 1.5's, whose files everybody has; no two tensors get one name."""
    names = original_controlnet_names(pair_spec("sd-controlnet").reference_side().module)
    assert len(set(names.values())) == len(names)
    known = {
        "conv_in.weight": "input_blocks.0.0.weight",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": (
            "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "down_blocks.1.downsamplers.0.conv.bias": "input_blocks.6.0.op.bias",
        "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
        "mid_block.resnets.1.time_emb_proj.weight": "middle_block.2.emb_layers.1.weight",
        "controlnet_cond_embedding.conv_out.weight": "input_hint_block.14.weight",
        "controlnet_down_blocks.11.bias": "zero_convs.11.0.bias",
        "controlnet_mid_block.weight": "middle_block_out.0.weight",
    }
    assert {name: names[name] for name in known} == {a: f"control_model.{b}" for a, b in known.items()}


@pytest.mark.parametrize(("kind", "halved"), [("full_adapter", (1, 2, 3)), ("full_adapter_xl", (2,))])
def test_the_original_adapter_reads_it(kind, halved, tmp_path):
    from diffusers import T2IAdapter

    torch.manual_seed(0)
    widths = [8, 16, 24, 24]
    adapter = T2IAdapter(channels=widths, downscale_factor=4, adapter_type=kind)
    assert_original_gives_the_same(adapter, FullAdapter(3, widths, 4, halved), tmp_path)


def test_the_original_light_adapter_reads_it(tmp_path):
    from diffusers import T2IAdapter

    torch.manual_seed(0)
    adapter = T2IAdapter(channels=[8, 16, 24], num_res_blocks=3, downscale_factor=4, adapter_type="light_adapter")
    assert_original_gives_the_same(adapter, LightAdapter(3, [8, 16, 24, 24], 4, 3), tmp_path)


def assert_original_gives_the_same(adapter, original, tmp_path):
    adapter.save_pretrained(tmp_path / "side")
    export(ExportOptions(tmp_path / "side", tmp_path / "side.safetensors", "original"))
    original.load_state_dict(load_file(tmp_path / "side.safetensors"))
    picture = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = adapter(picture), original(picture)
    assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("layout", ["diffusers", "diffusers-single", "original"])
def test_half_precision_is_the_cast_of_the_weights(layout, dtype, root, tmp_path):
    pair = saved(CHOSEN["sd-controlnet"], root, tmp_path / "side")
    out = tmp_path / ("out" if layout == "diffusers" else "out.safetensors")
    export(ExportOptions(tmp_path / "side", out, layout, dtype))
    file = next(out.glob("*.safetensors")) if layout == "diffusers" else out
    assert {value.dtype for value in load_file(file).values()} == {DTYPES[dtype]}
    loaded = pair.spec.load_side(str(out)).module.state_dict()
    assert same_weights(pair.side.module.state_dict(), loaded, DTYPES[dtype])
    assert not same_weights(pair.side.module.state_dict(), loaded)


def test_files_that_tell_no_configuration(root, tmp_path):
    """As most on the Hub: they get that of a new side network of the same main network."""
    pair = saved(CHOSEN["sd-controlnet"], root, tmp_path / "side")
    ours = pair.side.module.state_dict()
    export(ExportOptions(tmp_path / "side", tmp_path / "ours.safetensors", "original"))
    weights = load_file(tmp_path / "ours.safetensors")
    files = {
        "prefixed": weights,
        "bare": {name.removeprefix("control_model."): value for name, value in weights.items()},
        "whole checkpoint": weights | {"model.diffusion_model.out.0.weight": torch.zeros(3)},
        "diffusers": ours,
    }
    for name, content in files.items():
        save_file({key: value.contiguous() for key, value in content.items()}, tmp_path / f"{name}.safetensors")
        source = str(tmp_path / f"{name}.safetensors")
        loaded = pair.spec.load_fitting_side(pair.main, source)
        assert same_weights(ours, loaded.module.state_dict()), name
        with pytest.raises(LisaError, match="does not tell its configuration"):
            pair.spec.load_side(source)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.pop("conv_in.weight") is None, "do not match its configuration: 1 are missing"),
        (lambda weights: weights.update(more=torch.zeros(1)), "do not match its configuration: 1 are missing or too"),
        (lambda weights: weights.update({"conv_in.bias": torch.zeros(3)}), "are of another size: "),
    ],
)
def test_files_that_do_not_fit_are_refused(change, expected, root, tmp_path):
    pair = rows.make_pair(CHOSEN["sd-controlnet"], root)
    weights = dict(pair.side.module.state_dict())
    change(weights)
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "side.safetensors")
    with pytest.raises(LisaError, match=expected):
        pair.spec.load_fitting_side(pair.main, str(tmp_path / "side.safetensors"))


def test_files_of_another_kind_are_refused(root, tmp_path):
    saved(CHOSEN["sd-t2i-adapter"], root, tmp_path / "side")
    export(ExportOptions(tmp_path / "side", tmp_path / "side.safetensors"))
    main = tiny.load_main(rows.model_folder(CHOSEN["sd-controlnet"], root))
    for file, expected in {
        tmp_path / "side.safetensors": "holds a T2IAdapter, not a ControlNetModel",
        tmp_path / "old.ckpt": "may run code",
        tmp_path / "broken.safetensors": "cannot be read",
        tmp_path / "nowhere.safetensors": "there is no ControlNetModel folder",
    }.items():
        if file.stem in ("old", "broken"):
            file.write_bytes(b"no")
        with pytest.raises(LisaError, match=expected):
            pair_spec("sd-controlnet").load_fitting_side(main, str(file))


def test_which_pairs_have_which_formats():
    original = {name for name in pair_names() if "original" in formats_of(pair_spec(name))}
    controlnets = {"sd-controlnet", "sdxl-controlnet", "animatediff-controlnet"}
    assert original == controlnets | {"sd-t2i-adapter", "sdxl-t2i-adapter"}


# What ComfyUI's loaders look for (comfy/controlnet.py, comfy_extras/nodes_model_patch.py), as docs/export.md lists it.
COMFYUI = {
    "sd-controlnet": ["controlnet_cond_embedding.conv_in.weight"],
    "animatediff-controlnet": ["controlnet_cond_embedding.conv_in.weight"],
    "sdxl-controlnet": ["controlnet_cond_embedding.conv_in.weight"],
    "sdxl-controlnet-union": ["controlnet_cond_embedding.conv_in.weight", "control_add_embedding.linear_1.bias"],
    "sd-t2i-adapter": ["adapter.body.0.resnets.0.block1.weight"],
    "sdxl-t2i-adapter": ["adapter.body.0.resnets.0.block1.weight"],
    "sd3-controlnet": ["controlnet_blocks.0.weight", "pos_embed_input.proj.weight"],
    "flux-controlnet": ["controlnet_blocks.0.weight", "controlnet_x_embedder.weight"],
    "qwen-controlnet": ["controlnet_blocks.0.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"],
    "zimage-controlnet": ["control_all_x_embedder.2-1.weight"],
    "svd-controlnet": ["controlnet_cond_embedding.conv_in.weight"],  # by which it is taken for another kind
}


@pytest.mark.parametrize("name", pair_names())
def test_what_the_table_says_of_names(name):
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    side = pair_spec(name).reference_side()
    looked_for, names = COMFYUI.get(name, []), side.module.state_dict().keys()
    assert set(looked_for) <= names and all(f"`{each}`" in page for each in looked_for)
    others = {each for wanted in COMFYUI.values() for each in wanted} - {"controlnet_blocks.0.weight"}
    assert looked_for or not others & names
    (row,) = [line for line in page.splitlines() if f"| `{name}`" in line or f", `{name}` |" in line]
    assert ("| all |" in row) == ("original" in formats_of(pair_spec(name)))
    if side.original_names is not None:
        written = type(side).original_names(side.module).values()
        assert {"control_model.zero_convs.0.0.weight", "conv_in.weight"} & set(written)
