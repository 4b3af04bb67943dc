"""Every family from folders as they are published: in shards with an index, in halved variants, side networks too.

Made of tiny weights by diffusers' own ``save_pretrained`` and read by what reads a user's folder. What only one
family's folders have (a text encoder that may be left out, another scheduler) is in that family's tests.
"""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from torch import nn

import tiny
from conformance import row as rows
from conformance.row import Row
from conformance.table import ROWS, VIDEO_ROWS
from lisa.common.errors import LisaError
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from model_copies import edited


def layout(row: Row):
    """What its folder is written with; what the network predicts is in the scheduler's file alone."""
    make = row.folder if isinstance(row.folder, partial) else partial(row.folder)
    return make.func, *sorted((name, value) for name, value in make.keywords.items() if name != "prediction")


MAINS = list({layout(row): row for row in reversed([*ROWS, *VIDEO_ROWS])}.values())
SIDES = list({(row.pair, row.init, layout(row)): row for row in reversed([*ROWS, *VIDEO_ROWS])}.values())
# (variant, type it is stored in, largest shard): large models come sharded, with and without a variant.
LAYOUTS = [
    (None, torch.float32, "20KB"),
    ("fp16", torch.float16, "10GB"),
    ("bf16", torch.bfloat16, "10KB"),
]
# preprocessor_config.json, as published.
EXTRACTOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
# Half of the download of SD3, whose two CLIPs read the text too.
OPTIONAL = {"sd3-controlnet": ("text_encoder_3",)}
each_main = pytest.mark.parametrize("row", MAINS, ids=str)
each_side = pytest.mark.parametrize("row", SIDES, ids=str)
each_layout = pytest.mark.parametrize(("variant", "kind", "shard"), LAYOUTS, ids=lambda value: str(value))


def networks(pipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def name_of_network(pipeline) -> str:
    return "unet" if "unet" in networks(pipeline) else "transformer"


def indices(folder) -> list[str]:
    """Names of the files that say which shard holds which weight."""
    return [path.name for path in folder.glob("*.index*.json")]


def assert_rounded(ours: nn.Module, theirs: nn.Module) -> None:
    """The weights in ``theirs``, whatever type ours are computed in."""
    mine, expected = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(mine[name], weight.to(mine[name].dtype)), name


@each_main
@each_layout
def test_main_networks(row, variant, kind, shard, tmp_path):
    spec = pair_spec(row.pair)
    pipeline = spec.load_main(str(rows.model_folder(row, tmp_path / "plain"))).pipeline
    for part in networks(pipeline).values():
        nn.Module.to(part, kind)
    folder = tmp_path / "published"
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=shard)
    sharded = [name for name in networks(pipeline) if indices(folder / name)]
    network = name_of_network(pipeline)
    assert (network in sharded) == (shard != "10GB")
    assert all((variant or "json") in name for name in indices(folder / network))
    main = spec.load_main(str(folder))  # the variant is found by itself
    for name, part in networks(pipeline).items():
        assert_rounded(getattr(main.pipeline, name), part)
    if variant is not None:
        spec.load_main(str(folder), variant=variant)
        with pytest.raises(LisaError, match="no weights of variant 'fp15'"):
            spec.load_main(str(folder), variant="fp15")


@each_main
def test_folders_that_mix_variants(row, tmp_path):
    """As repacked for small cards: the main network in bf16 alone, everything else plain alone."""
    spec = pair_spec(row.pair)
    pipeline = spec.load_main(str(rows.model_folder(row, tmp_path / "plain"))).pipeline
    folder, network = tmp_path / "published", name_of_network(pipeline)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / network)
    getattr(pipeline, network).to(torch.bfloat16).save_pretrained(folder / network, variant="bf16")
    main = spec.load_main(str(folder))
    for name, part in networks(pipeline).items():
        assert_rounded(getattr(main.pipeline, name), part)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_stable_diffusion_with_a_safety_checker(variant, tmp_path):
    """Stable Diffusion 1.5's public folder has one, and a feature extractor for it: training needs neither."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    pipeline = tiny.make_pipeline()
    pipeline.register_modules(
        safety_checker=StableDiffusionSafetyChecker(
            CLIPConfig(text_config=sizes | {"vocab_size": 8}, vision_config=vision, projection_dim=8)
        )
    )
    for part in networks(pipeline).values():
        nn.Module.to(part, torch.float32 if variant is None else torch.float16)
    pipeline.save_pretrained(tmp_path / "plain", variant=variant)
    entries = {"feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}
    folder = edited(tmp_path / "plain", tmp_path / "published", **entries)
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert list((folder / "safety_checker").glob("model*.safetensors"))
    spec = pair_spec("sd-controlnet")
    main = spec.load_main(str(folder))
    assert main.pipeline.safety_checker is None and main.pipeline.feature_extractor is None
    for name in ("unet", "vae", "text_encoder"):
        assert_rounded(getattr(main.pipeline, name), getattr(pipeline, name))
    made = spec.pipeline(main, spec.make_side(main, SideOptions()).module)
    assert made.safety_checker is None and not made.config.requires_safety_checker


@each_side
@each_layout
def test_side_networks(row, variant, kind, shard, tmp_path):
    pair = rows.make_pair(row, tmp_path)
    module, folder = pair.side.module.to(kind), tmp_path / "published"
    module.save_pretrained(folder, variant=variant, max_shard_size="4KB" if shard != "10GB" else shard)
    assert bool(indices(folder)) == (shard != "10GB")
    side = pair.spec.load_side(str(folder))
    pair.spec.check_fit(pair.main, side)
    assert {parameter.dtype for parameter in side.module.parameters()} == {torch.float32}
    assert_rounded(side.module, module)


@each_main
@pytest.mark.parametrize("how", ["null", "folder removed"])
def test_without_a_text_encoder(row, how, tmp_path):
    """Loaded where the pipelines do without it, refused by name where they do not."""
    spec = pair_spec(row.pair)
    plain = rows.model_folder(row, tmp_path / "plain")
    for name in spec.load_main(str(plain)).text_encoders:
        changes = {name: [None, None]} if how == "null" else {}
        folder = edited(plain, tmp_path / name, **changes)
        shutil.rmtree(folder / name)
        if name in OPTIONAL.get(row.pair, ()):
            assert getattr(spec.load_main(str(folder)).pipeline, name) is None
        else:
            with pytest.raises(LisaError, match=rf"no {name}\b" if how == "null" else name):
                spec.load_main(str(folder))


@each_main
def test_an_index_that_names_a_missing_shard(row, tmp_path):
    """A download that broke off."""
    spec = pair_spec(row.pair)
    pipeline = spec.load_main(str(rows.model_folder(row, tmp_path / "plain"))).pipeline
    folder = tmp_path / "broken"
    pipeline.save_pretrained(folder, max_shard_size="20KB")
    network = name_of_network(pipeline)
    (index,) = indices(folder / network)
    shards = sorted(set(json.loads((folder / network / index).read_text())["weight_map"].values()))
    (folder / network / shards[-1]).unlink()
    with pytest.raises(LisaError, match="cannot be loaded"):
        spec.load_main(str(folder))
