"""The loop on a network of one layer: accumulation, clipping, steps that are not finite, stopping."""

from __future__ import annotations

import math
import os
import signal
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lisa.common.errors import TrainingStopped
from lisa.train import loop
from lisa.train.loop import Callback, ClipGroup, LoopState, StepOutput, Training, run

ROWS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A side and a decoder, in small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.side, self.decoder = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, rows):
        return self.decoder(self.side(rows).tanh()).square().mean()


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen, self.logs, self.gradients = [], [], []

    def on_start(self, training):
        self.seen.append("start")

    def after_step(self, training, logs):
        self.seen.append(training.state.step)
        self.logs.append({name: float(value) for name, value in logs.items()})

    def on_end(self, training, finished):
        self.seen.append("finished" if finished else "stopped")

    def on_exit(self, training):
        self.seen.append("exit")


SGD = partial(torch.optim.SGD, lr=0.1)


def make(
    batch=4, accumulation=1, steps=4, spoil=lambda loss, micro: loss, clip=100.0, scaler=None, optimizer=SGD, **options
):
    """A training on consecutive rows; ``spoil(loss, number of the micro-step)`` may change the loss."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, cpu=True)
    if scaler is not None:
        accelerator.scaler, accelerator.native_amp = scaler, True
    net = accelerator.prepare(Net())
    optimizer = optimizer(net.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    micro = iter(range(10**6))

    def batches(start):
        for number in range(start, 10**6):
            yield ROWS[[(number * batch + i) % len(ROWS) for i in range(batch)]]

    def step(rows, number):
        loss = net(rows)
        return StepOutput(spoil(loss, next(micro)), {"mse": loss.detach()})

    recorder = Recorder()
    groups = {
        "side": ClipGroup(list(net.side.parameters()), clip),
        "decoder": ClipGroup(list(net.decoder.parameters()), clip),
    }
    training = Training(
        accelerator=accelerator,
        step=step,
        batches=batches,
        modules=[net],
        optimizer=accelerator.prepare(optimizer),
        scheduler=scheduler,
        total_steps=steps,
        clip=groups,
        callbacks=[recorder, *options.pop("callbacks", [])],
        **options,
    )
    return training, net, recorder


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_accumulation_equals_a_large_batch():
    results = {}
    for accumulation in (1, 2, 4):
        training, net, recorder = make(8 // accumulation, accumulation)
        assert run(training)
        assert training.state.step == 4 and training.state.micro_step == 4 * accumulation
        results[accumulation] = flat(net), recorder.logs
    for accumulation in (2, 4):
        assert torch.allclose(results[accumulation][0], results[1][0], atol=1e-6)
        for ours, theirs in zip(results[accumulation][1], results[1][1], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6), "what is logged is the mean over the micro-steps"
    assert not torch.allclose(results[1][0], flat(Net()), atol=1e-3)


def test_groups_are_clipped_apart():
    """A large gradient of the decoder must not slow the side network."""

    def after_one_step(clip, factor):
        training, net, recorder = make(steps=1, clip=clip)
        net.decoder.weight.register_hook(lambda gradient: gradient * factor)
        before = flat(net)
        run(training)
        moved = flat(net) - before
        size = sum(p.numel() for p in net.side.parameters())
        return moved[:size], moved[size:], recorder.logs[0]

    clip = 1e-3  # all gradients are above it
    side, decoder, logs = after_one_step(clip, 1.0)
    same_side, same_decoder, large = after_one_step(clip, 1e4)
    assert large["grad_norm/decoder"] > 100 * logs["grad_norm/decoder"], "norms are logged from before the clipping"
    assert large["grad_norm/side"] == logs["grad_norm/side"]
    assert torch.equal(side, same_side)
    for part in (side, decoder, same_decoder):
        assert float(part.norm()) == pytest.approx(0.1 * clip, rel=1e-3)  # learning rate times the largest norm
    assert float(after_one_step(1e9, 1.0)[0].norm()) > 10 * clip


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_thrown_away_and_counted(bad):
    training, net, recorder = make(steps=3, spoil=lambda loss, micro: loss * bad if micro == 1 else loss)
    weights = []
    recorder.after_step = lambda training, logs: weights.append(flat(net))
    assert run(training)
    assert (training.state.step, training.state.skipped, training.state.skipped_in_a_row) == (3, 1, 0)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert all(torch.isfinite(each).all() for each in weights)


def test_a_gradient_that_is_not_finite_counts_too():
    training, net, _ = make(steps=2)
    net.side.weight.register_hook(lambda gradient: gradient * math.nan if training.state.step == 0 else gradient)
    run(training)
    assert training.state.skipped == 1 and torch.isfinite(flat(net)).all()


def test_one_bad_micro_step_spoils_its_step_only():
    training, net, _ = make(2, 2, steps=3, spoil=lambda loss, micro: loss * math.nan if micro == 2 else loss)
    run(training)
    assert training.state.skipped == 1 and torch.isfinite(flat(net)).all()


def test_too_many_in_a_row_stop_the_training_after_a_checkpoint():
    training, net, recorder = make(
        steps=50, max_skipped=3, spoil=lambda loss, micro: loss * math.nan if micro >= 2 else loss
    )
    with pytest.raises(TrainingStopped, match="not finite 3 steps in a row") as caught:
        run(training)
    assert caught.value.exit_code == 3
    for cause in ("learning rate", "fp16", "damaged weights", "damaged images"):
        assert cause in str(caught.value)
    assert recorder.seen == ["start", 1, 2, 3, 4, 5, "stopped", "exit"], "on_end is where the checkpoint is written"
    assert torch.isfinite(flat(net)).all()


def test_bad_steps_with_good_ones_between_do_not_stop_it():
    training, _, _ = make(steps=9, max_skipped=3, spoil=lambda loss, micro: loss * math.nan if micro % 3 else loss)
    assert run(training) and training.state.skipped == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(number):
    before = signal.getsignal(number)
    training, _, recorder = make(2, 2, steps=9)
    inner = training.step

    def step(rows, current):
        if training.state.micro_step == 2:
            os.kill(os.getpid(), number)
        return inner(rows, current)

    training.step = step
    assert run(training) is False
    assert recorder.seen == ["start", 1, 2, "stopped", "exit"] and training.stop.signal_name == number.name
    assert training.state.micro_step == 4, "the step was finished"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once():
    training, _, recorder = make(steps=9)

    def step(rows, current):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    training.step = step
    with pytest.raises(KeyboardInterrupt):
        run(training)
    assert recorder.seen == ["start", "exit"], "the terminal is given back, half a step is not saved"


def test_on_exit_follows_an_error():
    training, _, recorder = make(steps=9)
    training.step = lambda rows, current: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(training)
    assert recorder.seen == ["start", "exit"]


def test_a_finished_training_does_nothing_more():
    training, net, recorder = make(steps=3, state=LoopState(step=3, micro_step=3))
    before = flat(net)
    assert run(training) and recorder.seen == ["start", "finished", "exit"] and torch.equal(before, flat(net))


def test_it_goes_on_at_its_micro_step():
    whole, net, _ = make(2, 2, steps=4)
    run(whole)
    first, part, _ = make(2, 2, steps=2)
    run(first)
    second, rest, _ = make(2, 2, steps=4, state=first.state)
    rest.load_state_dict(part.state_dict())
    run(second)
    assert torch.equal(flat(rest), flat(net))


def test_processes_stop_together(monkeypatch):
    """A signal reaches processes at different moments: what one was asked, all do."""
    training, _, recorder = make(steps=9)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    heard = []

    def reduce(self, tensor, reduction="sum", scale=1.0):
        if len(tensor.shape) == 0 and heard is not None:
            heard.append(float(tensor))
        return tensor + (training.state.step == 2)  # the other process was asked to stop during step 2

    monkeypatch.setattr(loop, "_optimise", lambda t, running: setattr(t.state, "step", t.state.step + 1))
    monkeypatch.setattr(Accelerator, "reduce", reduce)
    assert run(training) is False and recorder.seen == ["start", 1, 2, "stopped", "exit"]
    assert heard == [0.0, 0.0] and not training.stop.requested


def test_with_a_loss_scaler(monkeypatch):
    """fp16's GradScaler on the CPU: gradients are unscaled once for all groups, overflows are its own business."""
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    spoil = lambda loss, micro: loss * math.inf if micro == 1 else loss  # noqa: E731
    training, net, recorder = make(steps=3, spoil=spoil, scaler=scaler)
    plain, other, expected = make(steps=3, spoil=spoil)
    assert run(training) and run(plain)
    assert training.state.skipped == plain.state.skipped == 1
    assert scaler.get_scale() == 2.0**9, "it heard of the overflow"
    assert torch.allclose(flat(net), flat(other), atol=1e-3)  # half precision
    assert recorder.logs[0] == pytest.approx(expected.logs[0], rel=3e-2), "norms are those of the true gradients"


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.AdamW, lr=0.1, fused=True)])
def test_a_loss_scaler_that_always_overflows_stops_the_training(monkeypatch, optimizer):
    """A fused optimiser leaves such steps out in its own kernel, where accelerate does not see it."""
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    scaler = torch.amp.GradScaler("cpu")
    training, net, _ = make(steps=9, max_skipped=4, scaler=scaler, optimizer=optimizer)
    net.side.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingStopped, match="4 steps in a row"):
        run(training)
    assert torch.equal(flat(net), flat(Net())) and training.state.skipped == 4
    assert scaler.get_scale() == 2.0 ** (16 - 4), "it heard of every overflow"
