"""Sampling with the ControlNet of Stable Video Diffusion: the base model's own clip without control, ours with it."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from conformance import row as rows
from conformance import tiny_svd
from lisa import SVDControlNet, SVDControlNetPipeline
from lisa.common.errors import LisaError
from lisa.mains import svd
from lisa.pairs import Inputs, Pair, pair_spec
from lisa.sides.svd import SVDControlNetSide
from lisa.train.step import drop_captions

FRAMES, SIZE, SEED = 3, 32, 1


@pytest.fixture(scope="module")
def base():
    return tiny_svd.make_pipeline()


@pytest.fixture(scope="module")
def pipeline(base):
    torch.manual_seed(3)
    controlnet = SVDControlNet.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 96)).eval()
    rows.randomise_zero_modules(SVDControlNetSide(controlnet))
    made = SVDControlNetPipeline(**base.components, controlnet=controlnet.requires_grad_(True))
    made.set_progress_bar_config(disable=True)
    return made


def picture(seed):
    noise = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy())


IMAGE, CONDITION = picture(0), [picture(10 + i) for i in range(FRAMES)]


def sample(pipeline, *arguments, **options):
    given = {"num_inference_steps": 2, "max_guidance_scale": 2.0, "output_type": "pt"}
    given["generator"] = torch.Generator().manual_seed(SEED)
    made = pipeline(*(arguments or (IMAGE, CONDITION)), **{**given, **options})
    return made if options.get("return_dict") is False else made.frames


def test_several_clips_of_several_pictures_are_each_picture_s_own(pipeline):
    """The stock pipeline repeats embeddings (a, a, b, b) and latents (a, b, a, b) of its pictures."""
    pictures, conditions = [IMAGE, picture(1)], [CONDITION, [picture(20 + i) for i in range(FRAMES)]]
    own = [
        sample(
            pipeline, pictures[number // 2], conditions[number // 2], generator=[torch.Generator().manual_seed(number)]
        )
        for number in range(4)
    ]
    generators = [torch.Generator().manual_seed(number) for number in range(4)]
    together = sample(pipeline, pictures, conditions, num_videos_per_prompt=2, generator=generators)
    assert len(together) == 4 and (together[0] - together[2]).abs().max() > 0.01
    for clip, (expected,) in zip(together, own, strict=True):
        torch.testing.assert_close(clip, expected, atol=1e-4, rtol=0)


def test_without_control_it_is_the_stock_pipeline(base, pipeline):
    stock = StableVideoDiffusionPipeline(**base.components)
    stock.set_progress_bar_config(disable=True)
    expected = sample(stock, IMAGE, SIZE, SIZE, FRAMES)
    assert torch.equal(sample(pipeline, controlnet_conditioning_scale=0.0), expected)
    assert torch.equal(sample(pipeline, control_guidance_start=0.9), expected)
    assert (sample(pipeline) - expected).abs().max() > 1e-3
    assert expected.shape == (1, FRAMES, 3, SIZE, SIZE)
    assert torch.equal(sample(stock, IMAGE, SIZE, SIZE, FRAMES), expected), "nothing is left on the UNet"


def test_it_gives_the_clip_of_our_own_sampling(pipeline, monkeypatch):
    """Euler's steps written out, on the pair's prediction, with a guidance that rises from first frame to last."""
    spec, components = pair_spec("svd-controlnet"), dict(pipeline.components)
    side = SVDControlNetSide(components.pop("controlnet"))
    main = svd.SVDMain(StableVideoDiffusionPipeline(**copy.deepcopy(components)), "here")
    pair, generator = Pair(spec, main, side, share_prior=False), torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    monkeypatch.setattr(svd, "_noise", lambda frames, keys: noise)
    to_tensor = pipeline.control_video_processor.preprocess
    context = main.encode_frame(to_tensor(IMAGE) * 2 - 1, torch.tensor([7.0]), torch.tensor([127.0]), ["any"])
    dropped = drop_captions(context, main.encode_unconditional(), torch.tensor([True]))
    condition = to_tensor(CONDITION).transpose(0, 1)[None]
    pipeline.scheduler.set_timesteps(2)
    sigmas, guidance = pipeline.scheduler.sigmas, torch.linspace(1.0, 2.0, FRAMES).reshape(-1, 1, 1)
    x_t = torch.randn(1, FRAMES, 4, SIZE // 4, SIZE // 4, generator=generator).transpose(1, 2)
    x_t = x_t * pipeline.scheduler.init_noise_sigma
    with torch.no_grad():
        for now, then in pairwise(sigmas):
            yes, no = (pair.control(Inputs(x_t, now[None], each, condition)) for each in (context, dropped))
            denoised = main.process.denoised(x_t, no + guidance * (yes - no), now[None])
            x_t = x_t + (x_t - denoised) / now * (then - now)
        ours = (main.decode(x_t).transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(sample(pipeline), ours, atol=2e-4, rtol=1e-3)


def test_saved_and_loaded_it_makes_the_same_clip(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = SVDControlNetPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    rows.to_own_memory(loaded)
    for part in (loaded, pipeline):
        for module in (part.unet, part.vae, part.image_encoder, part.controlnet):
            module.requires_grad_(True)  # torch multiplies by frozen weights in another order
    assert type(loaded.controlnet) is SVDControlNet
    assert torch.equal(sample(loaded), sample(pipeline))


def test_guidance_rises_from_the_first_frame_to_the_last(pipeline):
    """In one step, the first frame with a guidance of 1 is the unguided one's."""
    guided = sample(pipeline, num_inference_steps=1, max_guidance_scale=3.0, output_type="latent")
    plain = sample(pipeline, num_inference_steps=1, max_guidance_scale=1.0, output_type="latent")
    difference = (guided - plain).abs().amax((0, 2, 3, 4))
    assert difference[0] < 1e-3 < 0.01 < difference[1] < difference[2]


@pytest.mark.parametrize(("window", "steps"), [((0.0, 1.0), 4), ((0.5, 1.0), 2), ((0.0, 0.25), 1), ((0.3, 0.7), 0)])
def test_control_acts_in_its_share_of_the_steps(pipeline, window, steps):
    calls = []
    hook = pipeline.controlnet.register_forward_pre_hook(lambda module, given: calls.append(given[0].shape[0]))
    start, end = window
    options = {"num_inference_steps": 4, "max_guidance_scale": 1.0, "output_type": "latent"}
    sample(pipeline, control_guidance_start=start, control_guidance_end=end, **options)
    hook.remove()
    assert calls == [1] * steps


def test_clips_of_a_batch_are_made_as_each_alone(pipeline):
    images, clips = [IMAGE, picture(5)], [CONDITION, [picture(20 + i) for i in range(FRAMES)]]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = sample(pipeline, images, clips, generator=generators)
    for seed, image, clip, made in zip((1, 2), images, clips, together, strict=True):
        alone = sample(pipeline, image, clip, generator=torch.Generator().manual_seed(seed))[0]
        torch.testing.assert_close(made, alone, atol=2e-3, rtol=1e-3)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    one_for_both = sample(pipeline, images, CONDITION, generator=generators)
    torch.testing.assert_close(one_for_both[0], together[0], atol=2e-3, rtol=1e-3)
    assert (one_for_both[1] - together[1]).abs().max() > 1e-3


def test_conditions_in_every_form_and_frames_in_chunks(pipeline):
    """Pictures, or tensors in 0..1, of one clip or of several; and clips decoded a frame at a time."""
    tensor = pipeline.control_video_processor.preprocess(CONDITION)
    expected = sample(pipeline, num_inference_steps=1, output_type="latent")
    for given in (tensor, tensor[None], [CONDITION]):
        assert torch.equal(sample(pipeline, IMAGE, given, num_inference_steps=1, output_type="latent"), expected)
    assert torch.equal(sample(pipeline, num_inference_steps=1, output_type="latent", return_dict=False), expected)
    lengths = []
    own = pipeline.vae.decode
    pipeline.vae.decode = lambda latents, num_frames: lengths.append(num_frames) or own(latents, num_frames)
    try:
        sample(pipeline, num_inference_steps=1, decode_chunk_size=2)
    finally:
        del pipeline.vae.decode
    assert lengths == [2, 1]


def test_what_does_not_fit_is_refused_before_any_work(pipeline):
    with pytest.raises(LisaError, match=r"num_frames is 5, and there are 3 conditioning_frames"):
        sample(pipeline, num_frames=5)
    with pytest.raises(LisaError, match=r"2 clips for 1 images"):
        sample(pipeline, IMAGE, [CONDITION, CONDITION])
    with pytest.raises(LisaError, match=r"start is 0.5, control_guidance_end 0.5"):
        sample(pipeline, control_guidance_start=0.5, control_guidance_end=0.5)
    compiled = SVDControlNetPipeline(**{**pipeline.components, "unet": copy.deepcopy(pipeline.unet)})
    compiled.unet.compile(backend="eager")
    with pytest.raises(LisaError, match="compiled as a whole"):
        sample(compiled)
