"""lisa.attach on the transformers' ControlNets: names, and strides measured by a dry run on zeros."""

from __future__ import annotations

import pytest
import torch

import lisa
from conformance import tiny_hunyuan, tiny_qwen, tiny_sana, tiny_zimage
from lisa.common.errors import LisaError
from lisa.sides.base import SideOptions
from lisa.sides.hunyuan import HunyuanControlNetSide
from lisa.sides.qwen import QwenImageControlNetSide
from lisa.sides.sana import SanaControlNetSide
from lisa.sides.zimage import ZImageControlNetSide

MAKE = {
    "hunyuan": lambda: HunyuanControlNetSide.from_main(tiny_hunyuan.make_transformer(style=True, layers=8)),
    "sana": lambda: SanaControlNetSide.from_main(tiny_sana.make_transformer(patch_size=2)),
    "qwen": lambda: QwenImageControlNetSide.from_main(tiny_qwen.make_transformer(), SideOptions()),
    "zimage": lambda: ZImageControlNetSide.from_main(tiny_zimage.make_transformer(), SideOptions(depth=3)),
}


@pytest.mark.parametrize("family", MAKE)
def test_strides_are_measured_and_nothing_is_left_behind(family):
    side = MAKE[family]()
    if family == "zimage":  # a loop of one's own shares the main network's modules, as diffusers has it
        type(side.module).from_transformer(side.module, side.lender)
    told = {layer.name: (layer.channels, layer.stride) for layer in side.layers()}
    state = {name: value.clone() for name, value in side.module.state_dict().items()}
    random = torch.random.get_rng_state()
    aligner = lisa.attach(side.module, list(told), out_channels=4)
    measured = {
        name: (decoder.in_channels, 2**decoder.upsamples)
        for name, decoder in zip(aligner.layers, aligner.decoders.values(), strict=True)
    }
    assert measured == told and set(list(told)[:2]) == {"block.0", "block.1"}
    assert all(torch.equal(value, state[name]) for name, value in side.module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_zimage_needs_what_it_borrows():
    with pytest.raises(LisaError, match="from_transformer"):
        lisa.attach(MAKE["zimage"]().module, "block.1", out_channels=4)
