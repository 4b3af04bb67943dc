"""Clips through the aligner: every form of a feature over time, and a clip of one frame is a picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core import LearningMeter, LikelihoodAligner, LikelihoodDecoder, SampleSums, make_weighting, to_map
from lisa.core.attaching import attach
from lisa.core.feature_tap import FeatureTap
from lisa.core.frames import fold, unfold

BATCH, CHANNELS, FRAMES, HEIGHT, WIDTH = 2, 4, 3, 4, 6
SHAPE = (BATCH, CHANNELS, FRAMES, HEIGHT, WIDTH)

#: (B, C, f, h, w) as side networks give it
FORMS = {
    "maps over time": lambda clip: clip,
    "maps": lambda clip: clip.transpose(1, 2).reshape(-1, *clip.shape[1:2], *clip.shape[3:]),
    "tokens": lambda clip: clip.flatten(2).mT,
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


class Side(nn.Module):
    """Its feature is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        return self.zero(feature)


class Readback(nn.Module):
    """Gives the map of one frame back, plus its timestep and x_t."""

    def forward(self, feature: Tensor, timesteps: Tensor, size: tuple[int, int], x_t: Tensor | None) -> Tensor:
        return to_map(feature, size) + timesteps[:, None, None, None] + (0 if x_t is None else x_t)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def aligned(decoder: nn.Module, side: Side, **options) -> LikelihoodAligner:
    return LikelihoodAligner({"zero": FeatureTap(side, "zero")}, {"zero": decoder}, weight=1.0, **options)


def made_decoder(**options) -> LikelihoodDecoder:
    """One whose way out is not zero, with which most comparisons would be vacuous."""
    torch.manual_seed(3)
    decoder = LikelihoodDecoder(CHANNELS, CHANNELS, 0, **options)
    nn.init.normal_(decoder.out.weight, std=0.3)
    return decoder


@EVERY_FORM
def test_a_planted_pattern_comes_back_at_its_frame_and_place(form):
    side = Side()
    aligner = aligned(Readback(), side)
    pattern = torch.zeros(SHAPE)
    pattern[1, 2, 1, 3, 5] = 1.0
    side(form(pattern).requires_grad_())
    terms = aligner(pattern, torch.zeros(SHAPE), torch.zeros(BATCH))
    assert torch.equal(terms.decoded["zero"], pattern) and terms.r2 == 1 and terms.loss == 0


@EVERY_FORM
def test_every_frame_is_read_at_its_clips_time_and_with_its_own_x_t(form):
    side = Side()
    aligner = aligned(Readback(), side)
    clip, x_t, t = normal(*SHAPE), normal(*SHAPE, seed=1), torch.tensor([100.0, 900.0])
    side(form(clip).requires_grad_())
    terms = aligner(clip, torch.zeros(SHAPE), t, x_t=x_t)
    torch.testing.assert_close(terms.decoded["zero"], clip + x_t + t.reshape(-1, 1, 1, 1, 1))


@EVERY_FORM
def test_the_loss_is_that_of_the_frames_as_pictures_and_sums_are_per_clip(form):
    clip, target, prior, t = (*(normal(*SHAPE, seed=i) for i in range(3)), torch.tensor([100.0, 900.0]))
    side, decoder = Side(), made_decoder()
    feature = form(clip).requires_grad_()
    aligner = aligned(decoder, side)
    side(feature)
    clips = aligner(target, prior, t)
    clips.loss.backward()
    gradient, by_clip = decoder.out.weight.grad.clone(), clips.squared_error
    decoder.zero_grad()

    pictures = fold(clip.detach()).requires_grad_()
    side(pictures)
    terms = aligner(fold(target), fold(prior), t.repeat_interleave(FRAMES))
    terms.loss.backward()
    torch.testing.assert_close(clips.loss, terms.loss)
    torch.testing.assert_close(by_clip, terms.squared_error.reshape(BATCH, FRAMES).sum(dim=1))
    torch.testing.assert_close(clips.squared_residual, (target - prior).square().flatten(1).sum(dim=1))
    torch.testing.assert_close(gradient, decoder.out.weight.grad)
    torch.testing.assert_close(feature.grad, form(unfold(pictures.grad, FRAMES)))


OPTIONS = {
    "plain": dict,
    "balanced": lambda: {"balanced": True},
    "normalised": lambda: {"weighting": make_weighting("normalised")},
    "min-snr": lambda: {"weighting": make_weighting("min-snr", snr=lambda t: 1000 / t)},
    "reads the prior": lambda: {"reads_prior": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@EVERY_FORM
def test_a_clip_of_one_frame_is_a_picture(form, options):
    """Over two steps, the second with what balance and weighting have learnt in the first."""
    results = []
    for picture in (True, False):
        side, made = Side(), options()
        aligner = aligned(made_decoder(x_t_channels=(2 if "reads_prior" in made else 1) * CHANNELS), side, **made)
        seen = []
        for step in range(2):
            clip, target, prior, x_t = (normal(BATCH, CHANNELS, 1, HEIGHT, WIDTH, seed=4 * step + i) for i in range(4))
            feature = (clip[:, :, 0] if picture else form(clip)).requires_grad_()
            given = [each[:, :, 0] if picture else each for each in (target, prior, x_t)]
            out = side(feature)
            terms = aligner(given[0], given[1], torch.tensor([100.0, 900.0]), x_t=given[2])
            (out.square().sum() + terms.loss).backward()
            decoded = terms.decoded["zero"].reshape(BATCH, CHANNELS, HEIGHT, WIDTH)
            gradient = feature.grad.mT if feature.ndim == 3 else feature.grad
            seen += [terms.loss, decoded, terms.squared_error, gradient.reshape(BATCH, CHANNELS, HEIGHT, WIDTH)]
        results.append(seen)
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


def test_clips_of_another_length_or_number_are_refused():
    side = Side()
    aligner = aligned(Readback(), side)
    wrong = {
        "tokens of two frames": normal(BATCH, 2 * HEIGHT * WIDTH + 1, CHANNELS),
        "maps of two frames": normal(BATCH * 2, CHANNELS, HEIGHT, WIDTH),
        "of two frames over time": normal(BATCH, CHANNELS, 2, HEIGHT, WIDTH),
        "of three clips": normal(3, CHANNELS, FRAMES, HEIGHT, WIDTH),
        # as many maps in all, of clips of another length
        "of three clips of two frames": normal(3, CHANNELS, 2, HEIGHT, WIDTH),
    }
    for feature in wrong.values():
        side(feature.requires_grad_())
        with pytest.raises(LisaError, match="is not of 2 clips of 3 frames"):
            aligner(normal(*SHAPE), normal(*SHAPE), torch.zeros(BATCH))


def test_meter_and_held_out_sums_count_clips():
    target, prior, controlled = (normal(*SHAPE, seed=i) for i in range(3))
    side = Side()
    aligner = aligned(Readback(), side)
    side(normal(*SHAPE).requires_grad_())
    terms = aligner(target, prior, torch.zeros(BATCH))
    meter = LearningMeter()
    meter.update(target, prior, controlled, torch.tensor([50.0, 950.0]), terms=terms)
    reading = meter.read()
    assert reading.count == BATCH and [each["count"] for each in reading.by_bin][::9] == [1, 1]
    gain = 1 - (target - controlled).square().sum() / (target - prior).square().sum()
    assert reading.control_gain == pytest.approx(gain.item(), abs=1e-6)
    assert reading.decoder_r2 == pytest.approx(terms.r2.item(), abs=1e-6)
    assert len(SampleSums.of(target, prior, controlled, terms)) == BATCH


@EVERY_FORM
def test_sizes_are_measured_on_a_clip_of_one_frame(form):
    """Channels of a module that does not tell them, and the stride."""
    side = Side()
    side.weight = nn.Parameter(torch.zeros(()))

    def dry_run() -> tuple[int, int]:
        side(form(normal(1, 8, 1, 2, 3)))
        return 4, 6

    (decoder,) = attach(side, "zero", out_channels=CHANNELS, dry_run=dry_run).decoders.values()
    assert (decoder.in_channels, decoder.upsamples) == (8, 1)


def test_three_dimensional_convolutions_tell_their_channels():
    side = nn.Sequential(nn.Conv3d(8, 16, 1))
    for tap, channels in (("input", 8), ("output", 16)):
        (decoder,) = attach(side, "0", out_channels=CHANNELS, stride=2, tap=tap).decoders.values()
        assert decoder.in_channels == channels
