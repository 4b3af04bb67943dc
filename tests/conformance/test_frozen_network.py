"""What people do to a frozen network, on every family that shares: handled bit for bit, or refused in clear words."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from conformance import row as rows
from conformance.table import ROWS, VIDEO_ROWS
from lisa.common.errors import LisaError
from lisa.pairs import pair_spec

CPU = torch.device("cpu")
# One row of every pair.
FAMILIES = list({row.pair: row for row in [*ROWS, *VIDEO_ROWS]}.values())
# Transformers that diffusers can cache; both have the same mixin.
CACHING = [row for row in FAMILIES if row.pair in ("flux-controlnet", "qwen-controlnet")]
SHARING = [row for row in FAMILIES if pair_spec(row.pair).shares_prefix]


def offload_by_layer(main):
    """accelerate: weights come from memory layer by layer (``enable_sequential_cpu_offload``)."""
    from accelerate import cpu_offload

    cpu_offload(main.network, CPU)


def offload_as_a_whole(main):
    """accelerate: the network comes when it is called (``enable_model_cpu_offload``)."""
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(main.network, CPU)


def offload_by_group(main):
    """diffusers: groups of blocks come one after the other."""
    main.network.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_by_leaf(main):
    """diffusers: layers come one after the other."""
    main.network.enable_group_offload(CPU, offload_type="leaf_level")


def compile_shared_block(main):
    """As ``compile_repeated_blocks`` does with the blocks of a transformer."""
    main.shared_modules()[-1].compile(backend="eager")


HANDLED = [offload_by_layer, offload_as_a_whole, offload_by_group, offload_by_leaf, compile_shared_block]


BORROWING = next(row for row in FAMILIES if row.pair == "zimage-controlnet")
# What diffusers' network cannot do by itself, or what is refused (see below).
IMPOSSIBLE = {
    "hunyuan-controlnet": (offload_by_layer, offload_by_group, offload_by_leaf),
    BORROWING.pair: (offload_by_layer,),
}


@pytest.mark.parametrize(
    ("row", "change"),
    [(row, change) for row in SHARING for change in HANDLED if change not in IMPOSSIBLE.get(row.pair, ())],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_shared_equals_separate(row, change, tmp_path):
    """Prior, controlled prediction and gradients with sharing are those of two passes of the network so changed."""
    results = []
    for share in (True, False):
        pair = rows.make_pair(row, tmp_path, share_prior=share)
        change(pair.main)
        results.append(rows.gradients(pair, row.sizes[1], nullcontext()))
    rows.assert_same_step(*results)


def test_what_is_borrowed_must_be_in_memory(tmp_path):
    """Z-Image's side network reads tokens of the main network, which offloading by layer has put away."""
    pair = rows.make_pair(BORROWING, tmp_path)
    inputs, _ = rows.make_inputs(pair, BORROWING.sizes[0])
    offload_by_layer(pair.main)
    with pytest.raises(LisaError, match=r"offloaded by layer.*not in memory.*enable_group_offload"):
        pair.predict(inputs)


@pytest.mark.parametrize("row", CACHING, ids=str)
@pytest.mark.parametrize("share", [True, False])
def test_caches_of_sampling_are_refused(row, share, tmp_path):
    """Their second call, the controlled one, would give back what the first one computed."""
    from diffusers import FirstBlockCacheConfig

    pair = rows.make_pair(row, tmp_path, share_prior=share)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.main.network.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(LisaError, match="caches what it computes") as caught:
        pair.predict(inputs)
    assert "disable_cache" in str(caught.value)
    pair.main.network.disable_cache()
    pair.predict(inputs)


@pytest.mark.parametrize("row", FAMILIES, ids=str)
def test_weights_that_are_cast_between_layers_are_refused(row, tmp_path):
    """Convolutions would fail in backward, with torch's words; adapters, which share nothing, too."""
    pair = rows.make_pair(row, tmp_path)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.main.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(LisaError, match="cast for each layer"):
        pair.predict(inputs)


@pytest.mark.parametrize(
    "row", [row for row in SHARING if pair_spec(row.pair).main_kind == "UNet2DConditionModel"], ids=str
)
def test_freeu_is_refused(row, tmp_path):
    pair = rows.make_pair(row, tmp_path)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.main.network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(LisaError, match="FreeU"):
        pair.predict(inputs)


@pytest.mark.parametrize("row", SHARING, ids=str)
def test_networks_compiled_as_a_whole_are_refused(row, tmp_path):
    pair = rows.make_pair(row, tmp_path)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.main.network.compile(backend="eager")
    with pytest.raises(LisaError, match="compiled as a whole"):
        pair.predict(inputs)


UNETS = [row for row in FAMILIES if pair_spec(row.pair).main_kind == "UNet2DConditionModel"]
shared_or_not = pytest.mark.parametrize(
    ("row", "share"),
    [(row, share) for row in UNETS for share in (True, False) if share <= pair_spec(row.pair).shares_prefix],
    ids=lambda value: f"share={value}" if isinstance(value, bool) else str(value),
)


@shared_or_not
def test_freeu_is_refused_shared_or_not(row, share, tmp_path):
    """Adapters, which share nothing, too: the prior would not be what the main network predicts."""
    pair = rows.make_pair(row, tmp_path, share_prior=share)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.main.network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    for call in (pair.predict, pair.prior):
        with pytest.raises(LisaError, match=r"FreeU is on.*disable_freeu"):
            call(inputs)
    pair.main.network.disable_freeu()
    assert pair.predict(inputs).prior is not None


@shared_or_not
def test_active_dropout_is_refused_shared_or_not(row, share, tmp_path):
    """In blocks that are not shared too: they run in both passes."""
    pair = rows.make_pair(row, tmp_path, share_prior=share)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    dropout = [layer for layer in pair.main.network.up_blocks.modules() if isinstance(layer, torch.nn.Dropout)][-1]
    dropout.p = 0.1
    dropout.train()
    with pytest.raises(LisaError, match=r"dropout is active.*main.eval\(\)"):
        pair.predict(inputs)
    dropout.eval()
    assert pair.predict(inputs).prior is not None


def compile_in_place(main):
    main.network.compile(backend="eager")


def compile_anew(main):
    """In place of the network that the pair was made with stands another module around it."""
    main.network = torch.compile(main.network, backend="eager")


@pytest.mark.parametrize("row", SHARING, ids=str)
def test_networks_compiled_after_the_pair_was_made_are_refused(row, tmp_path):
    pair = rows.make_pair(row, tmp_path)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    compile_anew(pair.main)
    with pytest.raises(LisaError, match=r"compiled as a whole.*share_prior=false"):
        pair.predict(inputs)


# Tracing takes time: few blocks.
SMALL = next(row for row in SHARING if row.pair == "sd3-controlnet")


@pytest.mark.parametrize("change", [compile_in_place, compile_anew])
def test_the_remedy_for_networks_compiled_as_a_whole(change, tmp_path):
    """Without sharing, it gives what it gives uncompiled."""
    results = []
    for changed in (True, False):
        pair = rows.make_pair(SMALL, tmp_path, share_prior=False)
        if changed:
            change(pair.main)
        results.append(rows.gradients(pair, SMALL.sizes[1], nullcontext()))
    rows.assert_same_step(*results)
    torch._dynamo.reset()


@pytest.mark.parametrize("row", [row for row in SHARING if row.pair in ("sd-controlnet", "flux-controlnet")], ids=str)
def test_repeated_blocks_may_be_compiled(row, tmp_path):
    """Shared ones and others, of a UNet inside of what is shared: the bits of two passes with compiled blocks."""
    results = []
    for share in (True, False):
        pair = rows.make_pair(row, tmp_path, share_prior=share)
        pair.main.network.compile_repeated_blocks(backend="eager")
        results.append(rows.gradients(pair, row.sizes[1], nullcontext()))
    rows.assert_same_step(*results)
    torch._dynamo.reset()
