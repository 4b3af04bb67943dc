"""Warm-up without a controlled pass, several noises per sample, a teacher: what is computed, and what learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss

from control_steps import batch, make
from lisa.train.callbacks import FreshStart
from lisa.train.step import AlignmentOptions
from lisa.train.teacher import Teacher
from tiny import randomise_zero_modules


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def counted(step, number):
    """Runs of the main and of the side network in one step, and its output."""
    counts = {"main": 0, "side": 0}
    handles = []
    for name, module in (("main", step.pair.main.network), ("side", step.pair.side.module)):

        def count(*_, name=name):
            counts[name] += 1

        handles.append(module.register_forward_hook(count))
    output = step(batch(), number)
    for handle in handles:
        handle.remove()
    return counts, output


def test_warm_up_aligns_without_a_controlled_pass(sd_small):
    step = make(sd_small)
    step.options = AlignmentOptions(warmup=3)
    torch.nn.init.normal_(step.aligner.decoders["down_5"].out.weight, std=0.1)
    counts, output = counted(step, 2)
    assert counts == {"main": 1, "side": 1} and output.logs.keys() == {"alignment", "decoder_r2"}
    assert float(output.loss.detach()) == pytest.approx(0.2 * float(output.logs["alignment"]))
    output.loss.backward()
    side = gradients(step.pair.side.module)
    assert side.keys() == dict(step.pair.side.module.named_parameters()).keys(), "all, for distributed wrappers"
    assert side["conv_in.weight"].abs().sum() > 0 and side["controlnet_mid_block.weight"].abs().sum() == 0
    counts, output = counted(step, 3)
    assert counts == {"main": 2, "side": 1} and "mse" in output.logs
    assert step.meter.read().count == 3, "only controlled passes are metered"


def test_warm_up_is_over_where_nothing_is_aligned(sd_small):
    step = make(sd_small, schedule="until-done")
    step.options = AlignmentOptions(warmup=3)
    step.schedule.load_state_dict({**step.schedule.state_dict(), "finished": True})
    assert counted(step, 0)[1].logs.keys() == {"mse"}


def test_more_noises_are_aligned_and_not_controlled(sd_small):
    one, three = make(sd_small), make(sd_small)
    three.options = AlignmentOptions(noises=3)
    counts, output = counted(three, 4)
    assert counts == {"main": 4, "side": 3}
    single = one(batch(), 4)
    assert torch.equal(output.logs["mse"], single.logs["mse"]), "the first draw is that of every arm"
    each = [float(three._observed(batch(), 4, draw)[0].loss.detach()) for draw in range(3)]
    assert len(set(each)) == 3, "every draw has a noise of its own"
    assert float((output.loss - output.logs["mse"]).detach()) == pytest.approx(sum(each), rel=1e-4)
    assert float((single.loss - single.logs["mse"]).detach()) == pytest.approx(3 * each[0], rel=1e-4)


def test_the_teacher_is_an_average_of_the_past(sd_small):
    step = make(sd_small)
    pair, module = step.pair, step.pair.side.module
    randomise_zero_modules(module)
    teacher = Teacher(pair, share=0.25, decay=0.9)
    inputs, target = step.inputs(batch(), 0)
    with torch.no_grad():
        first = pair.control(inputs)
    assert torch.allclose(teacher.target(target, inputs, 0), 0.75 * target + 0.25 * first, atol=1e-6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    moved = {name: value.clone() for name, value in module.state_dict().items()}
    for number in (1, 1):  # the second micro-step of a step does not follow again
        taught = teacher.target(target, inputs, number)
    assert all(torch.equal(value, moved[name]) for name, value in module.state_dict().items()), "weights are back"
    module.load_state_dict({name: before[name] + 0.1 * (moved[name] - before[name]) for name in before})
    with torch.no_grad():
        expected = 0.75 * target + 0.25 * pair.control(inputs)
    assert torch.allclose(taught, expected, atol=1e-5)
    assert module.training and pair.side.callee is module
    again = Teacher(pair, share=0.25, decay=0.9)
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(again.target(target, inputs, 1), teacher.target(target, inputs, 1))


def test_a_step_with_a_teacher_leaves_the_main_loss_alone(sd_small):
    """Gradients of the usual loss are those without a teacher, though the weights changed places in between."""
    grads, losses = [], []
    for taught in (False, True):
        step = make(sd_small)
        randomise_zero_modules(step.pair.side.module)
        if taught:
            step.options = AlignmentOptions(teacher=Teacher(step.pair, 0.5, 0.9))
        with torch.no_grad():  # so that teacher and pupil differ
            for parameter in step.pair.side.module.parameters():
                parameter.add_(1e-3)
        output = step(batch(), 0)
        losses.append(output.logs["mse"])
        output.loss.backward()  # the decoder starts at zero, so that nothing comes from it to the side network
        grads.append(gradients(step.pair.side.module))
        inputs, target = step.inputs(batch(), 0)
        assert mse_loss(step.pair.control(inputs), target) == losses[-1]
    assert torch.equal(*losses) and all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_the_teacher_under_autocast_is_not_the_pupil(sd_small):
    """Autocast keeps half-precision copies of the weights that it has seen: they must follow the change of places."""
    step = make(sd_small)
    pair, module = step.pair, step.pair.side.module
    randomise_zero_modules(module)
    teacher = Teacher(pair, share=0.999, decay=0.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05)
    inputs, target = step.inputs(batch(), 0)
    fresh = teacher.target(target, inputs, 0)
    with torch.autocast("cpu", torch.bfloat16):
        pupil = pair.control(inputs)
        taught = teacher.target(target, inputs, 0)
        again = pair.control(inputs)
    assert (taught - fresh).abs().max() < 0.2 * (pupil - fresh).abs().max()
    assert torch.equal(again, pupil) and again.requires_grad
    again.sum().backward()
    assert module.conv_in.weight.grad is not None, "the pupil's own weights learn, not copies of the teacher's"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_meter_reads_what_the_decoder_had_to_read(sd_small, share):
    """A decoder that says nothing explains nothing, however small a teacher makes what it had to say."""
    step = make(sd_small)
    randomise_zero_modules(step.pair.side.module)
    step.options = AlignmentOptions(teacher=Teacher(step.pair, share, 0.9))
    step(batch(), 0)
    reading = step.meter.read()
    assert reading.decoder_r2 == pytest.approx(0, abs=1e-6) and abs(reading.control_gain) > 0.01


def test_no_teacher_in_the_warm_up(sd_small):
    """It would be a controlled pass, of a network whose way out is closed."""
    step = make(sd_small)
    randomise_zero_modules(step.pair.side.module)
    step.options = AlignmentOptions(warmup=3, teacher=Teacher(step.pair, 0.5, 0.9))
    with torch.no_grad():
        step.pair.side.module.conv_in.bias.add_(1)
    before = step.options.teacher._average[1].clone()
    assert counted(step, 2)[0] == {"main": 1, "side": 1}
    assert not torch.equal(step.options.teacher._average[1], before), "it follows all the same"
    assert counted(step, 3)[0] == {"main": 3, "side": 2}


def test_balanced_noises_pull_no_harder_together_than_one(sd_small):
    """The share of each draw is in what the balance measures."""
    factors = {}
    for noises in (1, 4):
        step = make(sd_small, balanced=True)
        randomise_zero_modules(step.pair.side.module)
        torch.nn.init.normal_(step.aligner.decoders["down_5"].out.weight, std=0.1)
        step.options = AlignmentOptions(noises=noises)
        step(batch(), 0).loss.backward()
        factors[noises] = float(step.aligner.balances["down_5"].factor())
    assert factors[4] == pytest.approx(factors[1], rel=1e-4)


def test_after_the_warm_up_adam_knows_only_what_it_has_seen():
    idle, used = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([idle, used], lr=0.1, weight_decay=0.0)
    training = SimpleNamespace(state=SimpleNamespace(step=0), optimizer=optimizer)
    fresh = FreshStart(steps=5)
    for step in range(1, 7):
        (0 * idle.sum() + used.sum() if step <= 5 else idle.sum() + used.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        training.state.step = step
        fresh.after_step(training, {})
        assert optimizer.state[idle]["step"] == (step if step < 5 else step - 5)
    assert torch.allclose(idle, torch.full((3,), 0.9)), "one step of the learning rate, no more"
    assert optimizer.state[used]["step"] == 6
