"""Stable Video Diffusion from folders: conditioning frames as the pipeline has them, clips as latents, and refusals."""

from __future__ import annotations

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch

from conformance import tiny_svd
from lisa.build import parts
from lisa.build.analysis.setup import load_main
from lisa.build.checks import choose_log_sigma
from lisa.mains import svd
from lisa.mains.svd import NOISE_AUGMENTATION, SVDMain, load_svd
from lisa.pairs import pair_spec
from lisa.processes import RectifiedFlowProcess
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig
from lisa.train.step import drop_captions
from model_copies import edited, refused

SPEC = pair_spec("svd-controlnet")
RATE, MOTION = torch.tensor([7.0, 24.0]), torch.tensor([127.0, 40.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_svd.make_folder(tmp_path_factory.mktemp("svd") / "m", shard="200KB")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_svd(str(folder))


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded)


def bytes_of(*shape):
    """Random pictures as they are read: bytes brought to -1..1."""
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return pixels / 127.5 - 1


def test_folder(main):
    assert (main.latent_channels, main.latent_factor, main.size_multiple) == (4, 4, 8)  # the pipeline asks for 8
    assert (main.video, main.context_reads, main.latent_frames(14)) == (True, "frame", 14)
    assert main.process.prediction == "edm"
    assert not any(p.requires_grad for p in [*main.network.parameters(), *main.pipeline.image_encoder.parameters()])


def test_the_conditioning_frame_is_what_the_pipeline_makes_of_it(main, monkeypatch):
    """Embedding, latent (unscaled, of the frame with a little noise) and added times, for pictures of any size."""
    frames, pipeline = bytes_of(2, 3, 40, 48), main.pipeline
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(svd, "_noise", lambda frames, keys: noise)
    ours = main.encode_frame(frames, RATE, MOTION, ["a", "b"])
    pictures = pipeline.video_processor.postprocess(frames, output_type="pil")
    cpu = torch.device("cpu")
    with torch.no_grad():
        embeds = pipeline._encode_image(pictures, cpu, 1, False)
        pixels = pipeline.video_processor.preprocess(pictures, 40, 48) + 0.02 * noise
        latents = pipeline._encode_vae_image(pixels, cpu, 1, False)
    assert torch.equal(ours["encoder_hidden_states"], embeds) and embeds.shape == (2, 1, tiny_svd.WIDTH)
    torch.testing.assert_close(ours["image_latents"], latents, atol=1e-5, rtol=1e-4)
    added = [pipeline._get_add_time_ids(r - 1, m, 0.02, torch.float32, 1, 1, False) for r, m in ((7, 127), (24, 40))]
    torch.testing.assert_close(ours["added_time_ids"], torch.cat(added))


def test_the_noise_of_the_frame_belongs_to_the_sample(main):
    """The same at every visit and in every batch, so that the context can be cached."""
    frames = bytes_of(2, 3, 32, 32)[:1].repeat(2, 1, 1, 1)
    latents = lambda *keys: main.encode_frame(frames, RATE, MOTION, keys)["image_latents"]  # noqa: E731
    both, turned = latents("clips/a", "clips/b"), latents("clips/b", "clips/a")
    torch.testing.assert_close(both, turned.flip(0))
    assert (both[0] - both[1]).abs().max() > 1e-4
    drawn = svd._noise(torch.zeros(1, 3, 200, 200), ["a"])
    assert drawn.mean().abs() < 0.02 and (drawn.std() - 1).abs() < 0.02


def test_a_dropped_frame_is_zero_and_the_times_stay(main):
    """What the pipeline gives its unconditional pass."""
    context = main.encode_frame(bytes_of(2, 3, 32, 32), RATE, MOTION, ["a", "b"])
    dropped = drop_captions(context, main.encode_unconditional(), torch.tensor([True, False]))
    for name in ("encoder_hidden_states", "image_latents"):
        assert not dropped[name][0].any() and torch.equal(dropped[name][1], context[name][1])
        assert dropped[name].shape == context[name].shape
    assert torch.equal(dropped["added_time_ids"], context["added_time_ids"])
    assert context["added_time_ids"][0].tolist() == pytest.approx([6, 127, NOISE_AUGMENTATION])


def test_the_context_is_made_by_image_encoder_and_vae(main):
    """What is cached goes by a hash of both."""
    assert main.encoder_modules("text") == [main.pipeline.image_encoder, main.pipeline.vae]
    assert main.encoder_modules("image") == [main.pipeline.vae]
    main.drop_encoders()
    assert "dropped from memory" in refused(main.encode_frame, bytes_of(1, 3, 32, 32), RATE[:1], MOTION[:1], ["a"])
    assert set(main.encode_unconditional()) == {"encoder_hidden_states", "image_latents"}


def test_frames_are_encoded_one_by_one_and_decoded_together(main):
    """More frames than are encoded at once; two clips."""
    clips, vae = bytes_of(2, 3, 5, 32, 40), main.pipeline.vae
    mean, deviation = main.encode_moments(clips).chunk(2, dim=1)
    with torch.no_grad():
        for clip in range(2):
            for frame in range(5):
                posterior = vae.encode(clips[clip, :, frame][None]).latent_dist
                for ours, theirs in ((mean, posterior.mean), (deviation, posterior.std)):
                    expected = theirs[0] * vae.config.scaling_factor
                    torch.testing.assert_close(ours[clip, :, frame], expected, atol=1e-5, rtol=1e-4)
        theirs = main.pipeline.decode_latents(mean.transpose(1, 2), 5, 5)
    torch.testing.assert_close(main.decode(mean), theirs, atol=1e-4, rtol=1e-4)


def test_large_frames_are_decoded_some_at_a_time(main, monkeypatch):
    """Two of five at once: by us, and by the pipeline, whose parts see no more of each other than ours."""
    clips, vae = bytes_of(2, 3, 5, 32, 40), main.pipeline.vae
    whole, _ = main.encode_moments(clips).chunk(2, dim=1)
    together, encoded = main.decode(whole), []
    monkeypatch.setattr("lisa.core.frames._PIXELS", 2 * 32 * 40 + 9)
    with torch.no_grad():
        theirs = torch.cat([main.pipeline.decode_latents(clip.transpose(1, 2), 5, 2) for clip in whole.split(1)])
    parts = main.decode(whole)
    torch.testing.assert_close(parts, theirs, atol=1e-4, rtol=1e-4)
    assert (parts - together).abs().max() > 1e-3, "frames of a part do not see those of another"
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda part: encoded.append(len(part)) or encode(part))
    torch.testing.assert_close(main.encode_moments(clips).chunk(2, dim=1)[0], whole)
    assert encoded == [2] * 5


def test_the_prediction_is_the_networks(main):
    """Frames before channels, the scaled latent before the frame's, which is the same for all frames."""
    t, x_t = torch.tensor([0.5, 20.0]), torch.randn(2, 4, 3, 8, 8)
    context = main.encode_frame(bytes_of(2, 3, 32, 32), RATE, MOTION, ["a", "b"])
    scaled = x_t / (t**2 + 1).sqrt().reshape(-1, 1, 1, 1, 1)
    frame = context["image_latents"][:, None].repeat(1, 3, 1, 1, 1)
    with torch.no_grad():
        ours = main.forward(x_t, t, main.complete(context, x_t))
        given = (context["encoder_hidden_states"], context["added_time_ids"])
        theirs = main.network(torch.cat([scaled.transpose(1, 2), frame], dim=2), t.log() / 4, *given).sample
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_other_folders_are_refused(folder, tmp_path):
    message = refused(load_svd, str(edited(folder, tmp_path / "other", _class_name="AnimateDiffPipeline")))
    assert "AnimateDiffPipeline" in message and "StableVideoDiffusionPipeline" in message
    shutil.copytree(folder, tmp_path / "m")
    tiny_svd.make_scheduler(timestep_type="discrete").save_pretrained(tmp_path / "m" / "scheduler")
    shutil.rmtree(tmp_path / "m" / "unet")  # never read: it is refused before long work
    assert "timestep_type='discrete'" in refused(load_svd, str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("part", "make", "words"),
    [
        ("unet", lambda: tiny_svd.make_unet(in_channels=4), "takes 4 and gives 4 channels"),
        ("unet", lambda: tiny_svd.make_unet(projection_class_embeddings_input_dim=64), "reads 2 added times"),
        ("image_encoder", lambda: tiny_svd.make_image_encoder(16), "its image encoder gives 16"),
        ("scheduler", lambda: tiny_svd.make_scheduler(prediction_type="epsilon"), "prediction_type='epsilon'"),
        ("feature_extractor", lambda: None, "no feature_extractor"),
    ],
)
def test_models_that_cannot_be_trained_on(loaded, part, make, words):
    pipeline = copy.copy(loaded.pipeline)
    pipeline.register_modules(**{part: make()})
    assert words in refused(SVDMain, pipeline, "here")


def test_side_networks_of_other_unets_do_not_fit(main, loaded):
    side = SPEC.make_side(main, SideOptions())
    SPEC.check_fit(main, side)
    assert "is not free" in refused(SPEC.make_side, main, SideOptions(depth=2))
    for changes, words in (
        ({"block_out_channels": (64, 64)}, "block_out_channels"),
        ({"addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 48}, "addition_time_embed_dim"),
    ):
        pipeline = copy.copy(loaded.pipeline)
        pipeline.register_modules(unet=tiny_svd.make_unet(**changes))
        other = SPEC.make_side(SVDMain(pipeline, "other"), SideOptions())
        assert words in refused(SPEC.check_fit, main, other)


def test_weights_that_reach_nothing_are_frozen(main):
    """Queries and keys of the attention to one token, and the norms before them; nothing else."""
    side = SPEC.make_side(main, SideOptions())
    frozen = {name for name, p in side.module.named_parameters() if not p.requires_grad}
    ends = {name.split("transformer_blocks.0.")[-1] for name in frozen}
    assert ends == {"attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias"}
    assert len(frozen) == 4 * 2 * (2 + 1)  # in space and in time: of two layers and the middle block


def test_the_noise_levels_of_training_can_be_set(folder):
    """Of EDM models; others have none of that kind."""
    model = {"path": str(folder), "pair": "svd-controlnet", "log_sigma": [-0.5, 1.2]}
    data = {"source": "moving-scenes", "frames": 2, "size": 32}
    config = TrainConfig.model_validate({"model": model, "data": data})
    for main in (parts.build_pair(config).main, load_main(config, torch.device("cpu"))):
        assert (main.process.log_mean, main.process.log_std) == (-0.5, 1.2)
    flow = SimpleNamespace(process=RectifiedFlowProcess(), source="flux")
    assert "'flux' is no EDM model" in refused(choose_log_sigma, flow, (-0.5, 1.2))
