"""One step: what is drawn, what is computed, and when the prior is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from control_steps import MOMENTS, batch, make
from lisa.core.residual import MinSNRWeighting, WeightingContext
from lisa.processes.draws import Draws
from lisa.train.step import AlignmentOptions, drop_captions


def test_both_arms_see_the_same(sd_small):
    """Same noise, timesteps, dropout, latents; and with the weights equal the same usual loss, bit for bit."""
    lisa, plain = make(sd_small), make(sd_small, aligned=False)
    for step in (0, 7):
        (ours, target), (theirs, other) = lisa.inputs(batch(), step), plain.inputs(batch(), step)
        assert torch.equal(target, other)
        for one, two in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            equal = (
                torch.equal(one, two)
                if isinstance(one, torch.Tensor)
                else all(torch.equal(one[name], two[name]) for name in one)
            )
            assert equal
        with_alignment, without = lisa(batch(), step), plain(batch(), step)
        assert torch.equal(with_alignment.logs["mse"], without.loss)
        assert with_alignment.loss > without.loss


def test_draws_change_with_step_visit_and_seed(sd_small):
    step = make(sd_small)
    first, target = step.inputs(batch(), 0)
    assert not torch.equal(step.inputs(batch(), 1)[1], target)
    moved = step.inputs(batch((9, 4, 11)), 0)[1]
    assert torch.equal(moved[2], target[2]) and not torch.equal(moved[0], target[0])
    noise = step.draws.noise(0, [9], (4, 8, 8))[0]
    assert torch.equal(target[1], noise), "keyed by the visit, not by the place in the batch"
    step.draws = Draws(1)
    assert not torch.equal(step.inputs(batch(), 0)[0].x_t, first.x_t)


def test_the_posterior_is_sampled(sd_small):
    step = make(sd_small)
    process = step.pair.main.process
    inputs, noise = step.inputs(batch(), 0)
    alpha, sigma = (each.reshape(-1, 1, 1, 1) for each in process.alpha_sigma(inputs.t))
    posterior = step.draws.noise(0, [4, 9, 11], (4, 8, 8), "posterior")
    latents = MOMENTS[:, :4] + MOMENTS[:, 4:] * posterior
    assert torch.allclose(inputs.x_t, (alpha * latents + sigma * noise).float(), atol=1e-5)
    assert not torch.equal(posterior, noise)


def test_the_main_loss_by_noise_level(sd_small):
    """Min-SNR of epsilon: min(snr, gamma) / snr times each sample's error; without it the plain mean, bit for bit."""
    step = make(sd_small, aligned=False)
    plain = step(batch(), 0)
    assert torch.equal(plain.loss.detach(), plain.logs["mse"])
    process = step.pair.main.process
    gammas = (1e-3, 1e9)
    inputs, target = step.inputs(batch(), 0)
    errors = (step.pair.control(inputs) - target).square().mean((1, 2, 3))
    for gamma in gammas:
        step.weighting = MinSNRWeighting(WeightingContext(process.snr_of_decoder_time, process.prediction), gamma)
        snr = process.snr(inputs.t)
        expected = (snr.clamp(max=gamma) / snr * errors.detach()).mean()
        weighted = step(batch(), 0)
        assert float(weighted.loss.detach()) == pytest.approx(float(expected), rel=1e-4)
        assert torch.equal(weighted.logs["mse"], plain.logs["mse"])
    assert float(weighted.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=1e-6), "never capped"


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_captions_are_dropped_anew_at_each_visit(sd_small, dropout, share):
    step = make(sd_small, aligned=False, dropout=dropout)
    dropped = []
    for number in range(100):
        text = step.inputs(batch((3 * number, 3 * number + 1, 3 * number + 2)), number)[0].context
        rows = text["encoder_hidden_states"].abs().sum(dim=(1, 2)) == 0
        dropped += rows.tolist()
    assert sum(dropped) / 300 == pytest.approx(share, abs=0.08)


def test_dropping_takes_whole_rows():
    given, empty = (
        {"a": torch.ones(3, 2, 2), "b": torch.ones(3, 4)},
        {"a": torch.zeros(1, 2, 2), "b": torch.zeros(1, 4)},
    )
    kept = drop_captions(given, empty, torch.tensor([True, False, True]))
    assert kept["a"][:, 0, 0].tolist() == kept["b"][:, 0].tolist() == [0, 1, 0]


def runs_of_the_main_network(step, number):
    counts = []
    handle = step.pair.main.network.conv_in.register_forward_hook(lambda *_: counts.append(1))
    output = step(batch(), number)
    handle.remove()
    return len(counts), output


def test_the_prior_is_computed_only_while_it_is_needed(sd_small):
    step = make(sd_small, schedule="until-done")
    runs, output = runs_of_the_main_network(step, 0)
    assert runs == 2 and {"alignment", "decoder_r2"} <= output.logs.keys() and step.meter.read().count == 3
    step.schedule.load_state_dict({**step.schedule.state_dict(), "finished": True})
    runs, output = runs_of_the_main_network(step, 1)
    assert runs == 1 and output.logs.keys() == {"mse"} and torch.equal(output.loss, output.logs["mse"])
    assert step.meter.read().count == 3 and step.aligner.weight == 0
    output.loss.backward()
    assert all(parameter.grad is None for parameter in step.aligner.parameters())


def test_the_plain_arm_computes_no_prior(sd_small):
    runs, output = runs_of_the_main_network(make(sd_small, aligned=False), 0)
    assert runs == 1 and output.logs.keys() == {"mse"}


def test_the_weight_follows_the_schedule(sd_small):
    step = make(sd_small, schedule="cosine")
    weights = []
    for number in (0, 5, 9):
        output = step(batch(), number)
        weights.append(float((output.loss.detach() - output.logs["mse"]) / output.logs["alignment"]))
    expected = [step.schedule.weight(number) for number in (0, 5, 9)]
    assert weights == pytest.approx(expected, abs=1e-4) and weights[0] == pytest.approx(0.2) and weights[2] < 0.01


def test_the_shuffled_arm_aligns_with_the_residual_of_another_sample(sd_small):
    """Everything else is the same, to the last bit: it differs by what the decoder is asked for alone."""
    own, shuffled = make(sd_small), make(sd_small)
    shuffled.options = AlignmentOptions(shuffled=True)
    asked = {}
    for name, step in (("own", own), ("shuffled", shuffled)):
        given = step.align
        step.align = lambda *a, _given=given, _name=name, **k: asked.setdefault(_name, _given(*a, **k))
    one, two = own(batch(), 3), shuffled(batch(), 3)
    assert torch.equal(one.logs["mse"], two.logs["mse"])
    assert torch.equal(asked["shuffled"].residual[1:], asked["own"].residual[:-1])
    assert torch.equal(asked["shuffled"].residual[0], asked["own"].residual[-1])
    assert not torch.equal(asked["shuffled"].residual, asked["own"].residual)


def test_clips_have_noise_of_their_own_shape_and_one_noise_level_each(sd_small):
    step = make(sd_small)
    frames = torch.stack([MOMENTS, 2 * MOMENTS, 3 * MOMENTS], dim=2)
    inputs, noise = step.inputs(replace(batch(), moments=frames), 0)
    assert inputs.x_t.shape == noise.shape == (3, 4, 3, 8, 8) and inputs.t.shape == (3,)
    alpha, sigma = (each.reshape(-1, 1, 1, 1, 1) for each in step.pair.main.process.alpha_sigma(inputs.t))
    posterior = step.draws.noise(0, [4, 9, 11], (4, 3, 8, 8), "posterior")
    latents = frames[:, :4] + frames[:, 4:] * posterior
    assert torch.allclose(inputs.x_t, (alpha * latents + sigma * noise).float(), atol=1e-4)
    assert not torch.equal(noise[:, :, 0], noise[:, :, 1])


def test_what_has_no_dropped_form_is_left_alone():
    context = {"image": torch.ones(2, 1, 3), "times": torch.arange(6.0).reshape(2, 3)}
    dropped = drop_captions(context, {"image": torch.zeros(1, 1, 3)}, torch.tensor([True, False]))
    assert torch.equal(dropped["image"], torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 1, 3))
    assert dropped["times"] is context["times"]


def test_networks_and_decoders_are_given_x_t_at_its_scale(sd_small, monkeypatch):
    """As processes that add noise without shrinking the picture (EDM) scale it; the main network scales by itself."""
    step, seen = make(sd_small), []
    pair, align = step.pair, step.align
    monkeypatch.setattr(pair.main.process, "model_input", lambda x_t, t: x_t / 2, raising=False)
    step.align = lambda *given, x_t, **more: seen.append(x_t) or align(*given, x_t=x_t, **more)
    forward = pair.side.forward
    monkeypatch.setattr(pair.side, "forward", lambda x_t, *given: seen.append(x_t) or forward(x_t, *given))
    x_t = step.inputs(batch(), 0)[0].x_t
    step(batch(), 0)
    assert len(seen) == 2 and all(torch.equal(each, x_t / 2) for each in seen)
