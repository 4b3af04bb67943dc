"""One side network on several stacked conditions, in every pair that has it: the stock pipeline, called by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance import row as rows
from conformance.table import ROWS
from lisa.common.errors import LisaError
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver
from lisa.sides.base import SideOptions

STACKING = ("sd-controlnet", "sdxl-controlnet", "sd-t2i-adapter", "sdxl-t2i-adapter")
FIRST = {row.pair: replace(row, side=SideOptions(conditions=2)) for row in reversed(ROWS)}


@pytest.mark.parametrize("name", STACKING)
def test_the_stock_pipeline_gives_our_picture(name, tmp_path):
    """From the folders of all parts, with the conditions as one tensor: bit for bit. Both conditions count."""
    import diffusers

    pair = rows.make_pair(FIRST[name], tmp_path)
    assert pair.side.condition_channels == 6
    pair.side.module.eval()
    pair.side.save(tmp_path / "saved")
    side = getattr(diffusers, pair.spec.side_kind).from_pretrained(tmp_path / "saved")
    folder, stock_class = rows.model_folder(FIRST[name], tmp_path), getattr(diffusers, pair.spec.pipeline_name)
    stock, ours = stock_class.from_pretrained(folder, **{pair.call.network: side}), pair.pipeline()
    rows.to_own_memory(stock)
    for pipeline in (stock, ours):
        set_solver(pipeline)
    height, width = 8 * pair.main.latent_factor, 12 * pair.main.latent_factor
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (height, width, 6), dtype=torch.uint8, generator=generator)
    request = Request("0", "a cat", pictures.numpy(), seed=1)
    ((_, made),) = sample_pictures(ours, [request], SamplerSettings(steps=2, guidance=2.0), pair.call)

    def by_hand(pixels):
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(1)
        image = stock("a cat", image=pixels, height=height, width=width, generator=generator, **options).images[0]
        return (image * 255).round().astype(np.uint8)

    pixels = pictures[None].permute(0, 3, 1, 2).float() / 255  # by their strides convolutions choose how they round
    assert made.shape == (height, width, 3) and np.array_equal(by_hand(pixels), made)
    for channels in (slice(0, 3), slice(3, 6)):
        other = pixels.clone()
        other[:, channels] = 0
        assert not np.array_equal(by_hand(other), made)


@pytest.mark.parametrize("name", [name for name in FIRST if name not in STACKING])
def test_the_others_refuse(name, tmp_path):
    with pytest.raises(LisaError, match=r"2 stacked conditions: a .* reads"):
        rows.make_pair(FIRST[name], tmp_path)
