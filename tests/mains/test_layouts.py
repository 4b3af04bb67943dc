"""Every family from folders as they are published: in shards with an index, in halved variants, side networks too.

Made of tiny weights by diffusers' own ``save_pretrained`` and read by what reads a user's folder. What only one
family's folders have (a text encoder that may be left out, another scheduler) is in that family's tests.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from conformance import row as rows
from conformance import tiny_svd
from conformance.table import ROWS
from lisa.common.errors import LisaError
from lisa.pairs import pair_spec
from model_copies import edited

FAMILIES = list({row.pair: row for row in [*ROWS, *tiny_svd.ROWS]}.values())
# (variant, type it is stored in, largest shard): large models come sharded, with and without a variant.
LAYOUTS = [
    (None, torch.float32, "20KB"),
    ("fp16", torch.float16, "10GB"),
    ("bf16", torch.bfloat16, "10KB"),
]
# Half of the download of SD3, whose two CLIPs read the text too.
OPTIONAL = {"sd3-controlnet": ("text_encoder_3",)}
each_family = pytest.mark.parametrize("row", FAMILIES, ids=str)
each_layout = pytest.mark.parametrize(("variant", "kind", "shard"), LAYOUTS, ids=lambda value: str(value))


def networks(pipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def indices(folder) -> list[str]:
    """Names of the files that say which shard holds which weight."""
    return [path.name for path in folder.glob("*.index*.json")]


def assert_rounded(ours: nn.Module, theirs: nn.Module) -> None:
    """The weights in ``theirs``, whatever type ours are computed in."""
    mine, expected = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(mine[name], weight.to(mine[name].dtype)), name


@each_family
@each_layout
def test_main_networks(row, variant, kind, shard, tmp_path):
    spec = pair_spec(row.pair)
    pipeline = spec.load_main(str(rows.model_folder(row, tmp_path / "plain"))).pipeline
    for part in networks(pipeline).values():
        nn.Module.to(part, kind)
    folder = tmp_path / "published"
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=shard)
    sharded = [name for name in networks(pipeline) if indices(folder / name)]
    network = "unet" if "unet" in networks(pipeline) else "transformer"
    assert (network in sharded) == (shard != "10GB")
    assert all((variant or "json") in name for name in indices(folder / network))
    main = spec.load_main(str(folder))  # the variant is found by itself
    for name, part in networks(pipeline).items():
        assert_rounded(getattr(main.pipeline, name), part)
    if variant is not None:
        spec.load_main(str(folder), variant=variant)
        with pytest.raises(LisaError, match="no weights of variant 'fp15'"):
            spec.load_main(str(folder), variant="fp15")


@each_family
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


@each_family
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


@each_family
def test_an_index_that_names_a_missing_shard(row, tmp_path):
    """A download that broke off."""
    spec = pair_spec(row.pair)
    pipeline = spec.load_main(str(rows.model_folder(row, tmp_path / "plain"))).pipeline
    folder = tmp_path / "broken"
    pipeline.save_pretrained(folder, max_shard_size="20KB")
    network = "unet" if "unet" in networks(pipeline) else "transformer"
    (index,) = indices(folder / network)
    shards = sorted(set(json.loads((folder / network / index).read_text())["weight_map"].values()))
    (folder / network / shards[-1]).unlink()
    with pytest.raises(LisaError, match="cannot be loaded"):
        spec.load_main(str(folder))
