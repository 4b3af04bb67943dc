"""Several side networks together: the picture of diffusers' own container, called by hand as its documentation says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from conformance import row as rows
from conformance.table import ROWS
from lisa.common.errors import LisaError
from lisa.pairs import pair_names, pair_spec
from lisa.pairs.several import joint_pipeline
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver

FIRST = {row.pair: row for row in reversed(ROWS)}  # one row per pair will do: containers know nothing of predictions
TOGETHER = [name for name in pair_names() if pair_spec(name).call.container is not None]
PAIRS = pytest.mark.parametrize("name", TOGETHER)
WEIGHTS = (0.8, 0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


def made(name, root):
    """A pair and a second side network of other weights."""
    row = FIRST[name]
    pair = rows.make_pair(row, root)
    torch.manual_seed(11)
    other = pair.spec.make_side(pair.main, row.side)
    rows.randomise_zero_modules(other, seed=12)
    if name == "sdxl-controlnet-union":
        other.choose_control_type(2)
    for side in (pair.side, other):
        side.module.eval()
    return pair, other


def pictures(pair, number=4):
    size = [8 * pair.main.latent_factor] * 2
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(number)]


def sampled(pair, sides, requests, scale, batch=4):
    pipeline = joint_pipeline(pair.spec, pair.main, sides)
    set_solver(pipeline)
    settings = SamplerSettings(steps=2, guidance=2.0, control_scale=scale, batch_size=batch)
    call = pair.spec.call_with(pair.main, sides)
    return [picture for _, picture in sample_pictures(pipeline, requests, settings, call)]


def by_hand(pair, sides, conditions):
    """The stock pipeline from the folders of all parts, with lists of pictures and of scales."""
    import diffusers

    spec, folder = pair.spec, rows._FOLDERS[str(FIRST[pair.spec.name])]
    together = [side.module for side in sides]
    if spec.pipeline_name == "StableDiffusionXLAdapterPipeline":  # the one that makes no container of a list
        together = diffusers.MultiAdapter(together)
    pipeline = getattr(diffusers, spec.pipeline_name).from_pretrained(folder, **{spec.call.network: together})
    rows.to_own_memory(pipeline)
    set_solver(pipeline)
    given = [Image.fromarray(condition) for condition in conditions]
    arguments = {
        "StableDiffusionControlNetPipeline": {"image": given, "controlnet_conditioning_scale": [*WEIGHTS]},
        "StableDiffusionXLControlNetPipeline": {"image": given, "controlnet_conditioning_scale": [*WEIGHTS]},
        "StableDiffusionXLControlNetUnionPipeline": {
            "control_image": given,
            "controlnet_conditioning_scale": [*WEIGHTS],
            "control_mode": [0, 2],
        },
        "StableDiffusionAdapterPipeline": {"image": given, "adapter_conditioning_scale": [*WEIGHTS]},
        "StableDiffusionXLAdapterPipeline": {"image": given, "adapter_conditioning_scale": [*WEIGHTS]},
        "StableDiffusion3ControlNetPipeline": {
            "control_image": given,
            "controlnet_conditioning_scale": [*WEIGHTS],
        },
        "FluxControlNetPipeline": {"control_image": given, "controlnet_conditioning_scale": [*WEIGHTS]},
        "HunyuanDiTControlNetPipeline": {
            "control_image": given,
            "controlnet_conditioning_scale": [*WEIGHTS],
            "use_resolution_binning": False,
        },
    }[spec.pipeline_name]
    height, width = conditions[0].shape[:2]
    torch.manual_seed(1)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a cat",
        height=height,
        width=width,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **arguments,
    ).images[0]
    return (image * 255).round().astype(np.uint8)


@PAIRS
def test_pictures_are_those_of_the_stock_container(name, root):
    pair, other = made(name, root)
    a, b, c, d = pictures(pair)
    request = Request("0", "a cat", a, 1, (b,))
    (ours,) = sampled(pair, [pair.side, other], [request], WEIGHTS)
    for parameter in [*pair.side.module.parameters(), *other.module.parameters()]:
        parameter.requires_grad_(True)  # as after from_pretrained
    assert np.array_equal(ours, by_hand(pair, [pair.side, other], (a, b)))
    # Each of a batch has its own conditions, and the order of side networks and of pictures matters.
    more = [request, Request("1", "a cat", c, 1, (d,)), Request("2", "a cat", b, 1, (a,))]
    batch = sampled(pair, [pair.side, other], more, WEIGHTS)
    assert np.abs(batch[0].astype(int) - ours).max() <= 1, "but for rounding"
    assert all(not np.array_equal(ours, picture) for picture in batch[1:])
    (second,) = sampled(pair, [pair.side, other], more[1:2], WEIGHTS)
    assert np.abs(batch[1].astype(int) - second).max() <= 1
    assert not np.array_equal(ours, sampled(pair, [pair.side, other], [request], WEIGHTS[::-1])[0])


@PAIRS
def test_a_weight_of_zero_leaves_the_other_alone(name, root):
    """Bit for bit, but for Flux: its pipeline draws the latents of conditions from the picture's own generator."""
    pair, other = made(name, root)
    a, b, c, _ = pictures(pair)
    requests = [Request("0", "a cat", a, 1, (b,))]
    (both,) = sampled(pair, [pair.side, other], requests, (1.0, 0.0))
    assert np.array_equal(both, sampled(pair, [pair.side, other], [Request("0", "a cat", a, 1, (c,))], (1.0, 0.0))[0])
    (alone,) = sampled(pair, [pair.side], [Request("0", "a cat", a, 1)], 1.0)
    assert np.array_equal(both, alone) == (name != "flux-controlnet")
    assert not np.array_equal(both, sampled(pair, [pair.side, other], requests, (1.0, 1.0))[0])


@pytest.mark.parametrize("name", [name for name in pair_names() if name not in TOGETHER])
def test_pipelines_that_take_one_refuse_several(name, root):
    with pytest.raises(LisaError, match=r"several side networks.* takes one") as caught:
        joint_pipeline(pair_spec(name), None, [None, None])
    assert list(caught.value.choices) == TOGETHER


@pytest.mark.parametrize("name", ["sd3-controlnet", "flux-controlnet"])
def test_side_networks_that_the_container_would_add_up_wrongly_are_refused(name, root):
    """Residuals are added block by block as far as the shorter list goes, then spread over the main network."""
    pair, other = made(name, root)
    number = other.module.config.num_layers
    other.module.register_to_config(num_layers=number + 1)
    with pytest.raises(LisaError, match=f"cannot be used together: num_layers is {number}, {number + 1}"):
        joint_pipeline(pair.spec, pair.main, [pair.side, other])


def test_side_networks_are_not_changed(root):
    """The pipeline gives ControlNets of SD3's 8B layout the main network's positions; they would be saved with them."""
    row = next(row for row in ROWS if row.label == "8B")
    pair = rows.make_pair(row, root)
    other = type(pair.side)(copy.deepcopy(pair.side.module))
    pipeline = joint_pipeline(pair.spec, pair.main, [pair.side, other])
    assert all(net.pos_embed is not None for net in pipeline.controlnet.nets)
    assert pair.side.module.pos_embed is None and other.module.pos_embed is None
