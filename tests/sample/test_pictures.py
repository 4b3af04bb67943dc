"""Sampling and grids."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image

import tiny
from lisa.common.errors import LisaError
from lisa.pairs import PipelineCall
from lisa.sample.grids import grid, labelled_grid, save_png, titled_rows
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver

COLOURS = [np.full((4, 6, 3), value, np.uint8) for value in (10, 60, 110, 160)]


def test_a_grid_puts_pictures_where_they_belong(tmp_path):
    image = grid(COLOURS[:3], 2, gap=2, scale=3)
    assert image.size == ((6 + 2 + 6) * 3, (4 + 2 + 4) * 3)
    pixels = np.asarray(image)[1::3, 1::3]
    for i, (top, left) in enumerate([(0, 0), (0, 8), (6, 0)]):
        assert (pixels[top : top + 4, left : left + 6] == COLOURS[i][0, 0]).all()
    assert (pixels[4:6] == 255).all() and (pixels[6:, 8:] == 255).all()
    save_png(image, tmp_path / "deep" / "a.png")
    assert Image.open(tmp_path / "deep" / "a.png").size == image.size


def test_a_labelled_grid_has_a_title_above_each_column():
    rows = [COLOURS[:2], COLOURS[2:]]
    image, body = labelled_grid(rows, ("left", "right"), scale=4), grid(COLOURS, 2, gap=4, scale=4)
    assert image.width == body.width and np.array_equal(np.asarray(image)[-body.height :], np.asarray(body))
    head = np.asarray(image)[: -body.height]
    assert (head[:, : image.width // 2] < 128).any() and (head[:, image.width // 2 :] < 128).any()


@pytest.fixture(scope="module")
def pipeline(sd_small):
    pair = tiny.make_pair(sd_small)
    pair.side.module.controlnet_cond_embedding.conv_out.weight.data.mul_(300)  # a network that heeds its condition
    pipeline = pair.pipeline()
    set_solver(pipeline)
    return pipeline


def requests(count):
    generator = np.random.default_rng(0)
    return [
        Request(f"{i}", "a", generator.integers(0, 255, (32, 32, 3), dtype=np.uint8), seed)
        for i, seed in enumerate([5, 5, 6, 7][:count])
    ]


def draw(pipeline, wanted, **settings):
    options = {"steps": 2, "guidance": 1.0, "batch_size": 4, **settings}
    return [picture for _, picture in sample_pictures(pipeline, wanted, SamplerSettings(**options), PipelineCall())]


def test_solver_and_negative_prompt_are_the_pipelines(sd_small):
    """The picture of the stock pipeline with that scheduler of diffusers and that prompt, to the last bit."""
    pair = tiny.make_pair(sd_small)
    (wanted,) = requests(1)
    made, stock = pair.pipeline(), pair.pipeline()
    set_solver(made, "unipc")
    stock.scheduler = UniPCMultistepScheduler.from_config(stock.scheduler.config)
    (picture,) = draw(made, [wanted], steps=5, guidance=4.0, negative_prompt="b")
    for module in (stock.unet, stock.controlnet, stock.vae, stock.text_encoder):
        module.requires_grad_(True)
    expected = stock(
        "a",
        Image.fromarray(wanted.condition),
        height=32,
        width=32,
        negative_prompt="b",
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.array_equal(picture, (expected * 255).round().astype(np.uint8))
    for other in ({"negative_prompt": "c"}, {}):
        assert not np.array_equal(draw(made, [wanted], steps=5, guidance=4.0, **other)[0], picture)
    set_solver(made)
    assert not np.array_equal(draw(made, [wanted], steps=5, guidance=4.0, negative_prompt="b")[0], picture)


def test_a_solver_that_cannot_be(sd_small):
    pipeline = tiny.make_pair(sd_small).pipeline()
    own = type(pipeline.scheduler)
    set_solver(pipeline, "own")
    assert type(pipeline.scheduler) is own
    with pytest.raises(LisaError, match=r"unknown solver 'ddim'.*dpm\+\+, unipc, own"):
        set_solver(pipeline, "ddim")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    set_solver(pipeline)
    set_solver(pipeline, "own")
    assert type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler
    for solver in ("unipc", "dpm++"):
        with pytest.raises(LisaError, match=rf"the solver {re.escape(solver)} cannot take the place of FlowMatchEuler"):
            set_solver(pipeline, solver)


def test_every_picture_has_its_own_seed(pipeline):
    wanted = requests(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    together = draw(pipeline, wanted)
    assert torch.equal(torch.get_rng_state(), before), "sampling while training must not touch its random state"
    for one, other in zip(together, draw(pipeline, wanted, batch_size=1), strict=True):
        assert one.shape == (32, 32, 3) and one.dtype == np.uint8
        assert np.abs(one.astype(int) - other).max() <= 1
    order = draw(pipeline, wanted[::-1])[::-1]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(order, together, strict=True))


def test_scale_zero_is_no_control(pipeline):
    """The same seed and prompt, other conditions: alike without control, different with it."""
    wanted = [Request(f"{shade}", "a", np.full((32, 32, 3), shade, np.uint8), 5) for shade in (0, 255)]
    free, controlled = (draw(pipeline, wanted, control_scale=scale) for scale in (0.0, 3.0))
    assert np.abs(free[0].astype(int) - free[1]).max() <= 1
    assert np.abs(controlled[0].astype(int) - controlled[1]).max() > 5


def test_guidance_and_steps_matter(pipeline):
    base = draw(pipeline, requests(1))[0]
    for change in ({"guidance": 5.0}, {"steps": 4}):
        assert not np.array_equal(draw(pipeline, requests(1), **change)[0], base)


def test_stacked_conditions_get_a_column_each():
    stacked = np.concatenate(COLOURS[:2], axis=-1)
    rows, titles = titled_rows(["a", "b"], [(stacked, COLOURS[2])], ["made"])
    assert titles == ["a", "b", "made"] and all(np.array_equal(x, y) for x, y in zip(rows[0], COLOURS[:3], strict=True))
    assert titled_rows(["a"], [COLOURS[:2]], ["made"])[1] == ["condition", "made"]
