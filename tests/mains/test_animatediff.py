"""AnimateDiff from a folder: frames folded and unfolded, a ControlNet as Stable Diffusion's own, what is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import tiny
from conformance import row as rows
from conformance import tiny_animatediff
from lisa.common.errors import LisaError
from lisa.mains.animatediff import AnimateDiffMain, load_animatediff
from lisa.mains.base import latents_from_moments
from lisa.pairs import Pair, pair_spec
from lisa.sides.base import SideOptions
from model_copies import edited, refused

ROW = tiny_animatediff.ROWS[0]
SPEC = pair_spec(ROW.pair)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("animatediff")


@pytest.fixture(scope="module")
def main(root):
    return load_animatediff(str(rows.model_folder(ROW, root)))


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple, main.video) == (4, 4, 4, True)
    assert type(main.network).__name__ == "UNetMotionModel" and main.process.prediction == "epsilon"
    assert main.encode_text(["a cat"])["encoder_hidden_states"].shape == (1, tiny.WORDS, tiny.TEXT_WIDTH)


def test_how_long_clips_may_be(main):
    assert [main.latent_frames(frames) for frames in (1, 8)] == [1, 8]
    for frames in (0, 9):
        with pytest.raises(LisaError, match=f"clips of {frames} frames.*Use 1 to 8"):
            main.latent_frames(frames)


def test_frames_are_encoded_and_decoded_one_by_one(main):
    pixels = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments, vae = main.encode_moments(pixels), main.component("vae")
    assert moments.shape == (2, 8, 3, 4, 6)
    latents = latents_from_moments(moments, torch.zeros(2, 4, 3, 4, 6))
    decoded = main.decode(latents)
    assert decoded.shape == pixels.shape
    for clip in range(2):
        for frame in range(3):
            mean = vae.encode(pixels[clip : clip + 1, :, frame]).latent_dist.mean
            torch.testing.assert_close(latents[clip, :, frame], mean[0] * vae.config.scaling_factor)
            torch.testing.assert_close(decoded[clip, :, frame], vae.decode(mean).sample[0], atol=1e-4, rtol=1e-4)


def test_the_copy_is_the_control_net_of_the_unet_without_motion(main):
    from diffusers import ControlNetModel

    side = SPEC.make_side(main, SideOptions())
    stock = ControlNetModel.from_unet(tiny.make_unet(levels=3), conditioning_embedding_out_channels=(16, 32, 96))
    ours, theirs = side.module.state_dict(), stock.state_dict()
    assert list(ours) == list(theirs)
    new = ("controlnet_cond_embedding",)  # random at first
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith(new))
    for name in ("down_block_types", "block_out_channels", "layers_per_block", "attention_head_dim"):
        assert json.dumps(side.module.config[name]) == json.dumps(stock.config[name]), name


def test_a_control_net_for_stable_diffusion_is_one_to_start_from(root, main, tmp_path):
    """On each frame it gives what it gives there: the second one tells clips from frames apart."""
    folder = tiny.make_folder(tmp_path / "sd", factor=4, levels=3)
    made = tiny.make_pair(folder)
    made.side.module.eval()
    made.side.save(tmp_path / "side")
    side = SPEC.load_fitting_side(main, str(tmp_path / "side"))
    pair = Pair(SPEC, main, side)
    inputs, _ = rows.make_inputs(pair, (8, 12))
    with torch.no_grad():
        down, mid = pair.run_side(inputs)
        frame = type(inputs)(inputs.x_t[:, :, 1], inputs.t, inputs.context, inputs.condition[:, :, 1])
        expected_down, expected_mid = made.run_side(frame)
    for ours, expected in zip([*down, mid], [*expected_down, expected_mid], strict=True):
        torch.testing.assert_close(ours.unflatten(0, (-1, rows.FRAMES))[:, 1], expected, atol=1e-5, rtol=1e-4)


def test_more_than_text_is_refused(main):
    pipeline = copy.deepcopy(main.pipeline)
    pipeline.unet = tiny_animatediff.make_pipeline(conv_in_channels=9).unet
    assert "takes 9 channels" in refused(AnimateDiffMain, pipeline, "here")


def test_a_folder_without_motion_is_refused(root, tmp_path):
    folder = edited(rows.model_folder(ROW, root), tmp_path / "m", motion_adapter=[None, None])
    assert "no motion_adapter" in refused(load_animatediff, str(folder))
    assert "holds a StableDiffusionPipeline" in refused(load_animatediff, str(tiny.make_folder(tmp_path / "sd")))


def test_the_folder_is_made_as_the_page_says(tmp_path):
    """Around a Stable Diffusion, whose noise schedule must not stay."""
    sd, motion, folder = (tmp_path / name for name in ("sd", "motion", "folder"))
    tiny.make_folder(sd, factor=4, levels=3)
    tiny_animatediff.make_adapter().save_pretrained(motion)
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "MotionAdapter" in each)
    exec(block, {"sd": sd, "motion": motion, "folder": folder})
    alpha, _ = load_animatediff(str(folder)).process.alpha_sigma(torch.arange(1000))
    linear = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    torch.testing.assert_close(alpha**2, (1 - linear).cumprod(0), rtol=1e-5, atol=1e-8)
    kept = edited(folder, tmp_path / "kept", "scheduler/scheduler_config.json", beta_schedule="scaled_linear")
    assert "beta_schedule='linear'" in refused(load_animatediff, str(kept))
