"""ControlNets of Stable Diffusion 3: what the pipeline does with the condition, depth, positions, and the 8B layout."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import lisa
import runs
from conformance import row as rows
from conformance.calls import compare_with_pipeline
from conformance.tiny_sd3 import ROWS, make_folder, make_large_side, make_pipeline
from lisa.build import parts
from lisa.build.checks import check_positions
from lisa.common.errors import LisaError
from lisa.mains.sd3 import StableDiffusion3Main
from lisa.pairs import Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures
from lisa.sides.base import SideOptions
from lisa.sides.sd3 import SD3ControlNetSide, entered
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

SPEC = pair_spec("sd3-controlnet")


@pytest.fixture(scope="module")
def loaded():
    return StableDiffusion3Main(make_pipeline(), "memory")


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def make_pair(main, **module):
    """A pair with random zero modules; ``module``: changes of the side network's configuration."""
    side = SPEC.make_side(main, SideOptions())
    if module:
        side.module.register_to_config(**module)
        side = SD3ControlNetSide(side.module.requires_grad_(True))
    rows.randomise_zero_modules(side)
    return Pair(SPEC, main, side)


def test_positions_of_both_networks_count(main):
    side = SPEC.make_side(main, SideOptions())
    check_positions((256, 128), main, side)
    with pytest.raises(LisaError, match=r"272x64 pixels are larger .* at most 256 pixels"):
        check_positions((64, 272), main, side)
    smaller = SD3ControlNetSide(type(side.module).from_config(dict(side.module.config) | {"pos_embed_max_size": 8}))
    SPEC.check_fit(main, smaller)
    with pytest.raises(LisaError, match=r"256x128 pixels are larger .* at most 128 pixels"):
        check_positions((128, 256), main, smaller)


def test_positions_are_checked_before_a_training(main, tmp_path):
    folder = make_folder(tmp_path / "model")
    side = SPEC.make_side(main, SideOptions())
    SD3ControlNetSide(type(side.module).from_config(dict(side.module.config) | {"pos_embed_max_size": 4})).save(
        tmp_path / "side"
    )
    raw = runs.settings(tmp_path / "run", folder, data__size=80, side__init=str(tmp_path / "side"))
    raw["model"]["pair"] = SPEC.name
    with pytest.raises(LisaError, match=r"80x80 pixels are larger .* at most 64 pixels"):
        parts.build_pair(check_settings(TrainConfig, raw))


@pytest.mark.parametrize("zeros", [True, False])
def test_training_computes_what_the_pipeline_will(main, zeros):
    """Zero pooled text and an unshifted condition, or the text and the shift: as the configuration says."""
    pair = make_pair(main, force_zeros_for_pooled_projection=zeros)
    ours = compare_with_pipeline(pair, (16, 24))
    pair.side.module.register_to_config(force_zeros_for_pooled_projection=not zeros)
    assert (compare_with_pipeline(pair, (16, 24)) - ours).abs().max() > 1e-3  # the test could tell


def large_side(tmp_path):
    side = SPEC.load_side(str(make_large_side(tmp_path / "side")))
    rows.randomise_zero_modules(side)
    return side


def test_the_8b_layout_computes_what_the_pipeline_will(main, tmp_path):
    side = large_side(tmp_path)
    SPEC.check_fit(main, side)
    pair = Pair(SPEC, main, side)
    keys = list(side.module.state_dict())
    compare_with_pipeline(pair, (16, 24), ("hidden_states",))
    # The pipeline gives its ControlNet positions: not ours, which would be saved with them.
    assert side.module.pos_embed is None and list(side.module.state_dict()) == keys
    pipeline = pair.pipeline()
    assert pipeline.controlnet.pos_embed is not None
    with torch.no_grad():
        side.module.controlnet_blocks[0].bias.add_(1.0)  # trained on: the pipeline sees it
    assert torch.equal(pipeline.controlnet.controlnet_blocks[0].bias, side.module.controlnet_blocks[0].bias)


def test_every_picture_has_its_own_seed(main):
    """The pipeline draws the condition from torch's global generator, which belongs to the training."""
    pair = make_pair(main)
    pipeline = pair.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = np.random.default_rng(0)
    wanted = [Request(str(i), "a", generator.integers(0, 255, (64, 64, 3), dtype=np.uint8), 5 + i) for i in range(2)]
    settings = SamplerSettings(steps=2, guidance=2.0, batch_size=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    together = [picture for _, picture in sample_pictures(pipeline, wanted, settings, SPEC.call)]
    assert torch.equal(torch.get_rng_state(), before)
    alone = [picture for _, picture in sample_pictures(pipeline, wanted[1:], settings, SPEC.call)]
    assert np.array_equal(together[1], alone[0])
    torch.manual_seed(6)  # what the user of the stock pipeline has to do
    for module in (pipeline.transformer, pipeline.vae, pipeline.controlnet, pipeline.text_encoder):
        module.requires_grad_(True)  # as it comes out of from_pretrained
    theirs = pipeline(
        "a", control_image=Image.fromarray(wanted[1].condition), num_inference_steps=2, guidance_scale=2.0,
        height=64, width=64, generator=torch.Generator().manual_seed(6), output_type="np",
    ).images  # fmt: skip
    assert np.abs((theirs[0] * 255).round() - together[1]).max() <= 1


@pytest.mark.parametrize(("depth", "blocks", "reach"), [(12, 24, 12), (19, 38, 19), (3, 4, 2), (23, 24, 22), (1, 1, 0)])
def test_which_blocks_reach_the_transformer(depth, blocks, reach):
    assert len(entered(depth, blocks)) == reach


def test_depth(main):
    assert len(SPEC.make_side(main, SideOptions()).module.transformer_blocks) == 2  # half of four
    assert len(SPEC.make_side(main, SideOptions(depth=1)).module.controlnet_blocks) == 1
    with pytest.raises(LisaError, match=r"depth is 3, .* only 2 blocks.*Choices: 1, 2\."):
        SPEC.make_side(main, SideOptions(depth=3))
    with pytest.raises(LisaError, match="2 stacked conditions"):
        SPEC.make_side(main, SideOptions(conditions=2))


def test_depth_of_a_transformer_whose_depth_is_the_default(main):
    """diffusers would take a value left at its default for one of the ControlNet's."""
    from diffusers import SD3Transformer2DModel

    sizes = {k: main.network.config[k] for k in ("in_channels", "joint_attention_dim", "pooled_projection_dim")}
    small = {"sample_size": 16, "attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}
    network = SD3Transformer2DModel(**sizes, **small, pos_embed_max_size=16)
    before = dict(network.config)
    side = SD3ControlNetSide.from_main(network, SideOptions(depth=2))
    assert len(side.module.transformer_blocks) == side.module.config.num_layers == 2
    assert dict(network.config) == before and network.config.num_layers == 18


def test_a_deeper_side_network_trains_what_reaches_the_transformer(main):
    from diffusers import SD3ControlNetModel

    module = SD3ControlNetModel.from_transformer(copy.deepcopy(main.network), 3, num_extra_conditioning_channels=0)
    side = SD3ControlNetSide(module)
    SPEC.check_fit(main, side)
    rows.randomise_zero_modules(side)
    pair = Pair(SPEC, main, side)
    inputs, target = rows.make_inputs(pair, (16, 16))
    (pair.predict(inputs).controlled - target).square().mean().backward()
    dead = [name for name, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []
    assert not any(p.requires_grad for p in module.transformer_blocks[2].parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"joint_attention_dim": 32}, "its joint_attention_dim is 32, the main network's is 48"),
     ({"extra_conditioning_channels": 1}, "takes 1 channels beside"),
     ({"pooled_projection_dim": 16}, "pooled_projection_dim is 16")],
)  # fmt: skip
def test_side_networks_of_others_are_refused(main, change, words):
    side = SPEC.make_side(main, SideOptions())
    side.module.register_to_config(**change)
    with pytest.raises(LisaError, match=words):
        SPEC.check_fit(main, side)


def test_attach_measures_the_stride(main, tmp_path):
    for side in (SPEC.make_side(main, SideOptions()), large_side(tmp_path)):
        aligner = lisa.attach(side.module, "block.1", out_channels=4)
        decoder = next(iter(aligner.decoders.values()))
        assert (decoder.in_channels, decoder.upsamples) == (16, 1)
        aligner.remove()


def test_reduced_precision_works_outside_autocast(main, loaded):
    main.to(torch.device("cpu"), torch.bfloat16)
    pair, exact = make_pair(main), make_pair(copy.deepcopy(loaded))
    inputs, _ = rows.make_inputs(exact, ROWS[0].sizes[0])
    with torch.no_grad():
        torch.testing.assert_close(pair.predict(inputs).prior.float(), exact.predict(inputs).prior, atol=0.1, rtol=0.1)
