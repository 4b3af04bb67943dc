"""Held-out readings: fixed, undisturbing, and a condition gap that means what it says."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

import tiny
from lisa.core.schedule import make_schedule
from lisa.data.sources import ScenesSource
from lisa.data.transforms import PairedTransform
from lisa.processes.draws import Draws
from lisa.sides.attach import attach
from lisa.train.dataset import EncodedData
from lisa.train.held_out import HeldOutMeter


@pytest.fixture
def make(sd_small, tmp_path):
    def make(batch_size=3, aligned=True, randomise=True, schedule=None, levels=2):
        pair = tiny.make_pair(sd_small, randomise=randomise)
        aligner = attach(pair.side.module, "down.5", out_channels=4, stride=2) if aligned else None
        source = ScenesSource("edges", seed=3, count=5, size=32)
        data = EncodedData(source, pair.main, PairedTransform((32, 32)), tmp_path, ("latents", "text", "conditions"))
        return HeldOutMeter(pair, aligner, schedule, data, Draws(0), levels, batch_size, Accelerator(cpu=True))

    return make


def values(gap):
    return {name: interval["value"] for name, interval in gap.to_json().items()}


def test_a_reading_is_fixed_and_leaves_no_trace(make):
    meter = make()
    module, callee = meter.pair.side.module, object()
    module.train()
    meter.pair.side.callee = callee  # the distributed wrapper, say
    before = torch.get_rng_state()
    first = meter.read(0)
    assert meter.read(1) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training and meter.pair.side.callee is callee
    assert all(parameter.grad is None for parameter in module.parameters())


def test_batches_and_distribution_do_not_matter(make):
    one, three = values(make(batch_size=1).read(0)), values(make(batch_size=7).read(0))
    assert three == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_an_untrained_side_network_gains_nothing(make):
    gap = make(randomise=False).read(0)
    assert values(gap) == {name: pytest.approx(0, abs=1e-7) for name in vars(gap)}


def test_the_right_condition_is_the_samples_own(make, monkeypatch):
    """With a side network that answers each sample's own condition perfectly, the gap is the whole gain."""
    meter = make(aligned=False)
    own = {i: meter.data.collate([i], [meter.data.read(i, 0)], torch.device("cpu")).condition for i in range(5)}
    seen = {"right": [], "shuffled": []}
    original = meter.pair.predictions

    def predictions(inputs, conditions):
        for kind, batch in zip(seen, conditions, strict=True):
            seen[kind] += [next(i for i, each in own.items() if torch.equal(each[0], one)) for one in batch]
        return original(inputs, conditions)

    monkeypatch.setattr(meter.pair, "predictions", predictions)
    gap = meter.read(0)
    assert seen["right"] == [0, 1, 2, 3, 4] * 2, "levels by samples"
    assert sorted(seen["shuffled"]) == sorted(seen["right"])
    assert all(a != b for a, b in zip(seen["right"], seen["shuffled"], strict=True))
    assert gap.decoder_r2.to_json()["value"] is None, "a plain run has no decoder"


def test_every_sample_sees_every_level(make, monkeypatch):
    meter = make(levels=4)
    times = []
    original = meter.pair.predictions
    monkeypatch.setattr(meter.pair, "predictions", lambda given, of: times.append(given.t) or original(given, of))
    meter.read(0)
    by_sample = torch.cat(times).reshape(4, 5).T
    for row in by_sample:
        assert [int(t) // 250 for t in row] == [0, 1, 2, 3]


def test_the_prior_is_computed_once_for_both_conditions(make, monkeypatch):
    meter = make()
    forward, priors = meter.pair.main.forward, []

    def watched(x_t, t, context, residuals=None):
        if residuals is None:
            priors.append(len(x_t))
        return forward(x_t, t, context, residuals)

    monkeypatch.setattr(meter.pair.main, "forward", watched)
    together = values(meter.read(0))
    assert sum(priors) == 5 * meter.levels
    one_by_one = meter.pair.predictions

    def apart(inputs, conditions):
        for condition in conditions:
            yield from one_by_one(inputs, [condition])

    monkeypatch.setattr(meter.pair, "predictions", apart)
    assert values(meter.read(0)) == together and sum(priors) == 3 * 5 * meter.levels


def test_the_schedule_hears_every_reading(make):
    schedule = make_schedule("until-done", 0.2, 10)
    heard = []
    schedule.observe = lambda *reading: heard.append(reading)
    meter = make(schedule=schedule)
    gap = meter.read(7)
    assert heard == [(7, False, gap.decoder_gap.value)]
    meter.onset.load_state_dict({"first": 3, "run": 3, "last_step": 7, "onset": 3})
    meter.read(9)
    assert heard[1][:2] == (9, True)
    other = make()
    other.load_state_dict(meter.state_dict())
    assert other.onset.onset == 3


def test_the_decoder_is_read_while_the_alignment_rests(make):
    meter = make()
    meter.aligner.weight = 0
    assert meter.read(0).decoder_r2.value == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        next(p for p in reversed(list(meter.aligner.parameters()))).add_(1)  # the decoder's last bias
    assert meter.read(0).decoder_r2.value < -0.1 and meter.aligner.weight == 0
