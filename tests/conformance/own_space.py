"""The space that a family predicts in, as its sampler's scheduler understands it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lisa.pairs import Pair
from lisa.sample.pictures import set_solver

STEPS = 4


def follow_scheduler(pair: Pair, x0: Tensor, noise: Tensor) -> Tensor:
    """Where the pipeline's scheduler ends that is given the true target at each of its steps.

    On its way, what it makes must be the noisy latent that the process makes of ``x0`` and ``noise``.
    """
    pipeline, process = pair.pipeline(), pair.main.process
    set_solver(pipeline)
    scheduler = pipeline.scheduler
    # Some shift their steps by the size of the picture.
    scheduler.set_timesteps(STEPS, **({"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}))
    latent = None
    for t in scheduler.timesteps:
        time = process_time(pair.main, t).expand(len(x0))
        expected = process.x_t(x0, noise, time)
        if latent is not None:  # some count time in whole numbers
            torch.testing.assert_close(latent, expected, atol=0.02, rtol=0)
        latent = scheduler.step(process.target(x0, noise, time), t, expected, return_dict=False)[0]
    assert latent is not None
    return latent


def process_time(main: Any, t: Tensor) -> Tensor:
    """The scheduler's count of time as the process's."""
    if main.process.prediction == "edm":
        return (4 * t.float()).exp()
    return t.float() / 1000 if main.process.prediction == "flow" else t.long()
