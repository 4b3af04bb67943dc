"""What a checkpoint brings back, and what is as it is configured now."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from lisa.train.resuming import as_configured


def make(rate=1e-3, decoder=1.0, betas=(0.9, 0.999), decay=0.01, average=0.99):
    """Two groups with rates of their own, a warm-up with a cosine, an average."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": rate}, {"params": weights[1:], "lr": rate * decoder}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=decay)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=40)
    return weights, optimizer, scheduler, EMAModel(weights, decay=average)


def step(weights, optimizer, scheduler, ema, count):
    for number in range(count):
        for weight in weights:
            weight.grad = torch.full((3,), 0.1 * (number % 5 + 1))
        optimizer.step()
        scheduler.step()
        ema.step(weights)


def restored(saved, **changed):
    weights, optimizer, scheduler, ema = made = make(**changed)
    with as_configured(optimizer, scheduler, ema):
        for weight, value in zip(weights, saved["weights"], strict=True):
            weight.data.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        scheduler.load_state_dict(copy.deepcopy(saved["scheduler"]))
        ema.load_state_dict(copy.deepcopy(saved["ema"]))
    return made


@pytest.fixture
def saved():
    weights, optimizer, scheduler, ema = made = make()
    step(*made, 12)
    state = {"optimizer": optimizer, "scheduler": scheduler, "ema": ema}
    return {
        "weights": [w.detach().clone() for w in weights],
        **{name: copy.deepcopy(each.state_dict()) for name, each in state.items()},
    }


def test_with_the_same_configuration_nothing_is_another(saved):
    whole, resumed = make(), restored(saved)
    step(*whole, 12)
    assert [group["lr"] for group in resumed[1].param_groups] == [group["lr"] for group in whole[1].param_groups]
    for _ in range(3):
        step(*whole, 4)
        step(*resumed, 4)
        assert all(torch.equal(one, other) for one, other in zip(whole[0], resumed[0], strict=True))
        assert resumed[2].get_last_lr() == whole[2].get_last_lr()


def test_what_is_configured_otherwise_now_counts(saved):
    changed = {"rate": 5e-4, "decoder": 0.1, "betas": (0.8, 0.99), "decay": 0.1, "average": 0.9}
    _, optimizer, scheduler, ema = resumed = restored(saved, **changed)
    assert ema.decay == 0.9 and ema.optimization_step == 12 and scheduler.last_epoch == 12
    for group, rate in zip(optimizer.param_groups, (5e-4, 5e-5), strict=True):
        assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.8, 0.99), 0.1, rate)
    other = make(**changed)
    step(*other, 12)
    for _ in range(2):  # at once, and after the next step
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        assert scheduler.get_last_lr() == other[2].get_last_lr()
        step(*resumed, 1)
        step(*other, 1)
    assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 14, "the moments are kept"
