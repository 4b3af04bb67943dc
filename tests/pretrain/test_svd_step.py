"""A step of pretraining on clips: what the network is given, what learns, and the autoencoder of clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lisa.build.pretraining_clips import held_out_error
from lisa.core.frames import fold
from lisa.processes.draws import Draws
from lisa.train.pretrain.svd import ClipStep
from lisa.train.pretrain.vae import VAEStep, reconstruct
from tiny_pretraining import batch_of, denoiser, vae_of, video_config


def test_frames_are_embedded_as_the_pipeline_does():
    model, config = denoiser()
    pipe = model.pipeline(vae_of(config))
    batch = batch_of()
    pictures = pipe.video_processor.postprocess(batch.frames, output_type="pil")
    with torch.no_grad():
        theirs = pipe._encode_image(pictures, torch.device("cpu"), 1, False)
        ours = model.embed(batch.frames)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert ours.shape == (2, 1, 8) and float((ours[0] - ours[1]).abs().max()) > 1e-3


def test_every_parameter_but_the_unread_learns():
    """A frame is one token: who asks it has no choice, so that questions and what they are asked by learn nothing."""
    model, config = denoiser(video={"channels": [64, 64]})  # norms of a single channel would hide the times
    step = ClipStep(model, vae_of(config), Draws(0), config)
    step(batch_of(4), 0).loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-8}
    ends = {name.split("transformer_blocks.0.")[-1] for name in silent if name.startswith("unet")}
    assert ends == {"attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias"}
    assert all(name.endswith("k_proj.bias") for name in silent if name.startswith("image_encoder"))
    assert not [p for p in step.vae.parameters() if p.grad is not None]


def test_dropped_frames_are_zeros_and_the_times_stay():
    model, config = denoiser(denoiser={"caption_dropout": 0.5})
    step, batch = ClipStep(model, vae_of(config), Draws(0), config), batch_of(4)
    dropped, strengths = [], []
    for number in range(30):
        context = step.context(batch, number)
        zero = ~context["latent"].flatten(1).any(1)
        assert torch.equal(zero, ~context["embedding"].flatten(1).any(1))
        assert torch.equal(context["times"][:, 0], batch.rates - 1) and set(context["times"][:, 1].tolist()) == {127.0}
        dropped += zero.tolist()
        strengths += context["times"][:, 2].tolist()
    assert 0.35 < np.mean(dropped) < 0.65
    assert np.median(strengths) == pytest.approx(0.02, rel=0.2) and np.std(np.log(strengths)) == pytest.approx(
        0.5, abs=0.1
    )


def test_the_frames_latent_has_as_much_noise_as_the_times_say():
    model, config = denoiser(denoiser={"caption_dropout": 0.0})
    step, batch = ClipStep(model, vae_of(config), Draws(0), config), batch_of(2)
    seen = []
    step.vae.encode, real = lambda pictures: seen.append(pictures) or real(pictures), step.vae.encode
    context = step.context(batch, 3)
    noise = (seen[0] - batch.frames) / context["times"][:, 2, None, None, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    with torch.no_grad():
        torch.testing.assert_close(context["latent"], real(seen[0]).latent_dist.mode())


def test_an_untrained_network_explains_nothing_and_the_loss_says_so():
    """F* has unit variance where the latents have; noise levels are log-normal about 1."""
    model, config = denoiser()
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    step, levels = ClipStep(model, vae_of(config), Draws(0), config), []
    real = model.predict
    model.predict = lambda x_t, t, context: levels.extend(t.tolist()) or real(x_t, t, context)
    error = np.mean(
        [held_out_error(step, batch_of(4), 2)] + [float(step(batch_of(4), n).loss.detach()) for n in range(12)]
    )
    assert error == pytest.approx(1, abs=0.05)
    assert np.log(levels).mean() == pytest.approx(0, abs=0.4) and np.log(levels).std() == pytest.approx(1.5, abs=0.3)


def test_held_out_errors_do_not_depend_on_how_many_go_together():
    model, config = denoiser()
    step = ClipStep(model.eval(), vae_of(config), Draws(0), config)
    with torch.no_grad():
        assert held_out_error(step, batch_of(4), 3) == pytest.approx(held_out_error(step, batch_of(4), 4), rel=1e-5)


def test_frames_of_a_clip_are_decoded_together():
    config = video_config("unused")
    vae = vae_of(config)
    clips = torch.randn(2, 3, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        _, again = reconstruct(vae, clips, noise=False)
        for clip, theirs in zip(clips, again, strict=True):
            latents = vae.encode(fold(clip[None])).latent_dist.mode()
            torch.testing.assert_close(theirs.transpose(0, 1), vae.decode(latents, num_frames=3).sample)
    loss = VAEStep(vae, 1e-3, bf16=False)(clips, 0).loss
    loss.backward()
    silent = [name for name, p in vae.named_parameters() if p.grad is None]
    # With one residual block per resolution diffusers' middle block never comes to its attention.
    assert all(name.startswith("decoder.mid_block.attentions") for name in silent)
    assert float(vae.decoder.time_conv_out.weight.grad.abs().max()) > 0
