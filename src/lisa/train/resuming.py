"""What a resumed training is told anew, although its checkpoint holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OF_GROUPS = ("initial_lr", "betas", "weight_decay")


@contextmanager
def as_configured(optimizer: Any, scheduler: Any, ema: Any | None) -> Iterator[None]:
    """Inside, a checkpoint is loaded; afterwards learning rates, betas, weight decay and the average's decay are as
    they were before.

    Optimiser, schedule and average restore these with their states. Who resumes with another learning rate (because
    the loss was not finite, say) means the new one; with an unchanged configuration nothing is another.

    Args:
        optimizer: of torch, or as accelerate has prepared it.
        scheduler: a ``LambdaLR`` of it; the schedule goes on from the restored step, at the configured rates.
        ema: diffusers' ``EMAModel``, if there is one.
    """
    groups = [{name: group[name] for name in _OF_GROUPS if name in group} for group in optimizer.param_groups]
    rates, decay = list(scheduler.base_lrs), None if ema is None else ema.decay
    yield
    for group, configured in zip(optimizer.param_groups, groups, strict=True):
        group.update(configured)
    scheduler.base_lrs = rates
    now = [rate * factor(scheduler.last_epoch) for rate, factor in zip(rates, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, now, strict=True):
        group["lr"] = rate
    scheduler._last_lr = now
    if ema is not None:
        ema.decay = decay
