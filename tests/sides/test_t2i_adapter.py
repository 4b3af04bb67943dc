"""T2IAdapter: maps that fit the UNet's down blocks; what does not is refused."""

from __future__ import annotations

import pytest
import torch

import lisa
import tiny
from conformance import row as rows
from conformance import tiny_sdxl, tiny_t2i
from lisa.common.errors import LisaError
from lisa.pairs import pair_spec
from lisa.sides.t2i_adapter import T2IAdapterSide

ROWS = {row.pair: row for row in tiny_t2i.ROWS if row.prediction == "epsilon"}


@pytest.fixture(params=ROWS)
def pair(request, tmp_path_factory):
    return rows.make_pair(ROWS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(("name", "strides"), [("sd-t2i-adapter", [1, 2, 4, 8]), ("sdxl-t2i-adapter", [2, 2, 4, 4])])
def test_layers_of_the_public_adapters(name, strides):
    layers = pair_spec(name).reference_side().layers()
    assert [layer.channels for layer in layers] == [320, 640, 1280, 1280]
    assert [layer.stride for layer in layers] == strides
    assert [layer.name for layer in layers] == [f"adapter.{i}" for i in range(4)]


def test_every_map_enters(pair):
    """Also the last of an XL adapter, which the UNet leaves out silently where its shape is another."""
    inputs, _ = rows.make_inputs(pair, (16, 24))
    context = pair.main.complete(inputs.context, inputs.x_t)
    with torch.no_grad():
        maps = pair.side.forward(inputs.x_t, inputs.t, context, inputs.condition)
        whole = pair.main.forward(inputs.x_t, inputs.t, context, maps)
        assert len(maps) == 4  # the UNet takes entries out of the list that it is given
        assert torch.equal(whole, pair.main.forward(inputs.x_t, inputs.t, context, maps))
        for i in range(4):
            without = [torch.zeros_like(each) if i == j else each for j, each in enumerate(maps)]
            assert (whole - pair.main.forward(inputs.x_t, inputs.t, context, without)).abs().max() > 1e-5, i


def test_it_reads_the_condition_alone(pair):
    """So the decoder must be given x_t, which it is where the side network says that it does not see it."""
    inputs, _ = rows.make_inputs(pair, (8, 8))
    with torch.no_grad():
        maps = pair.side.forward(inputs.x_t, inputs.t, inputs.context, inputs.condition)
        others = pair.side.forward(inputs.x_t + 1, inputs.t // 2, {}, inputs.condition)
    assert all(torch.equal(one, other) for one, other in zip(maps, others, strict=True))
    assert not pair.side.sees_x_t


def test_strides_are_measured_in_a_loop_of_ones_own(pair):
    layers = pair.side.layers()
    names, given = [layer.name for layer in layers], [layer.stride for layer in layers]
    options = {"out_channels": 4, "tap": "output", "x_t_channels": 4}
    measured, told = (lisa.attach(pair.side.module, names, stride=stride, **options) for stride in (None, given))
    assert [p.shape for p in measured.parameters()] == [p.shape for p in told.parameters()]
    other = lisa.attach(pair.side.module, names, stride=[8, 4, 2, 1], **options)
    assert [p.shape for p in other.parameters()] != [p.shape for p in told.parameters()]
    for aligner in (measured, told, other):
        aligner.remove()


def test_light_adapters_can_be_started_from(tmp_path, sd15):
    """They have one block more than widths."""
    from diffusers import T2IAdapter

    spec = pair_spec("sd-t2i-adapter")
    main = tiny.load_main(sd15)
    T2IAdapter(channels=[8, 8, 16], num_res_blocks=1, adapter_type="light_adapter").save_pretrained(tmp_path / "light")
    with pytest.raises(LisaError, match=r"maps have \[8, 8, 16, 16\] channels, the main network's \[8, 8, 16, 32\]"):
        main.network.register_to_config(block_out_channels=(8, 8, 16, 32))
        spec.check_fit(main, spec.load_side(str(tmp_path / "light")))
    main.network.register_to_config(block_out_channels=(8, 8, 16, 16))
    side = spec.load_side(str(tmp_path / "light"))
    spec.check_fit(main, side)
    assert [(layer.channels, layer.stride) for layer in side.layers()] == [(8, 1), (8, 2), (16, 4), (16, 8)]
    inputs, _ = tiny.make_inputs(main, 16, 16)
    maps = side.forward(inputs.x_t, inputs.t, inputs.context, inputs.condition)
    assert [each.shape[1:] for each in maps] == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 1}, "conditions of 1 channels"),  # as the public sketch and canny adapters
        ({"downscale_factor": 4}, "shrinks conditions by 4, the main network needs 8"),
        ({"channels": [8, 16, 16, 16]}, r"maps have \[8, 16, 16, 16\] channels"),
        (
            {"adapter_type": "full_adapter_xl", "downscale_factor": 16},
            r"is a full_adapter_xl, .* needs a full_adapter\.",
        ),
    ],
)
def test_adapters_that_do_not_fit(changes, words, sd15):
    from diffusers import T2IAdapter

    side = T2IAdapterSide(T2IAdapter(**{"channels": [8, 8, 16, 16], "num_res_blocks": 1} | changes))
    with pytest.raises(LisaError, match=words):
        pair_spec("sd-t2i-adapter").check_fit(tiny.load_main(sd15), side)


def test_unets_without_an_adapter():
    unet = tiny_sdxl.make_unet()
    unet.register_to_config(down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"))
    with pytest.raises(LisaError, match="no T2I-Adapter for a UNet of down blocks DownBlock2D, DownBlock2D, Cross"):
        T2IAdapterSide.from_main(unet, 8)
