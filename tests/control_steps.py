"""A training step on the tiny Stable Diffusion, and a batch for it."""

from __future__ import annotations

import torch

import tiny
from lisa.core.meter import LearningMeter
from lisa.core.schedule import make_schedule
from lisa.processes.draws import Draws
from lisa.sides.attach import attach
from lisa.train.dataset import Batch
from lisa.train.step import ControlStep

MOMENTS = torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def batch(visits=(4, 9, 11)):
    generator = torch.Generator().manual_seed(0)
    text = (tiny.WORDS, tiny.TEXT_WIDTH)
    return Batch(
        list(visits),
        MOMENTS,
        torch.rand(3, 3, 32, 32, generator=generator),
        {"encoder_hidden_states": torch.randn(3, *text, generator=generator)},
        {"encoder_hidden_states": torch.zeros(1, *text)},
    )


def make(sd_small, *, aligned=True, dropout=0.5, schedule="constant", balanced=False, **options):
    pair = tiny.make_pair(sd_small, **options)
    aligner = attach(pair.side.module, "down.5", out_channels=4, stride=2, balanced=balanced) if aligned else None
    weights = make_schedule(schedule, 0.2, 10) if aligned else None
    return ControlStep(pair, aligner, aligner, weights, LearningMeter(), Draws(0), dropout)
