"""One training step of a side network (method.md, "One training step")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lisa.core.aligner import LikelihoodAligner
from lisa.core.meter import LearningMeter
from lisa.core.residual import NoiseLevelWeighting
from lisa.core.schedule import WeightSchedule
from lisa.core.terms import AlignmentTerms
from lisa.mains.base import Context, latents_from_moments
from lisa.pairs import Inputs, Pair
from lisa.processes.draws import Draws
from lisa.train.dataset import Batch
from lisa.train.loop import StepOutput
from lisa.train.teacher import Teacher


@dataclass(frozen=True)
class AlignmentOptions:
    """How a step is aligned, beside weight and schedule.

    Attributes:
        shuffled: with the residual of the sample before it in the batch: the control arm that shows how much of a gain
            is owed to the likelihood score, and how much to an extra head.
        noises: draws of noise and noise level per sample and step that are aligned. Those beyond the first are not
            controlled, only aligned.
        warmup: first steps without a controlled pass.
        teacher: mixes its own prediction into the target that the residual is made of; not in the warm-up, where the
            side network's way out is still closed and it would know nothing.
    """

    shuffled: bool = False
    noises: int = 1
    warmup: int = 0
    teacher: Teacher | None = None


class ControlStep:
    """Controlled prediction and prior of one batch, the usual loss and the alignment's.

    Args:
        pair: main and side network.
        aligner: the alignment, or None for the plain baseline: then no prior is computed either.
        align: how the aligner is called (the aligner itself, or its distributed wrapper).
        schedule: weight over steps; once it is finished, the prior is no longer computed.
        meter: takes up control gain and decoder R2 while there is a prior.
        draws: keyed random numbers, so that arms with different heads see the same ones.
        caption_dropout: share of captions replaced by the empty one, drawn anew at each visit.
        options: of the alignment.
        weighting: of the main loss, by noise level; None: the plain mean squared error.
    """

    def __init__(
        self,
        pair: Pair,
        aligner: LikelihoodAligner | None,
        align: Callable[..., AlignmentTerms] | None,
        schedule: WeightSchedule | None,
        meter: LearningMeter,
        draws: Draws,
        caption_dropout: float,
        options: AlignmentOptions | None = None,
        weighting: NoiseLevelWeighting | None = None,
    ) -> None:
        self.pair, self.aligner, self.align, self.schedule = pair, aligner, align, schedule
        self.meter, self.draws, self.caption_dropout = meter, draws, caption_dropout
        self.options = options if options is not None else AlignmentOptions()
        self.weighting = weighting

    def __call__(self, batch: Batch, step: int) -> StepOutput:
        """One step's forward passes."""
        aligning = self._set_weight(step)
        if aligning and step < self.options.warmup:
            return self._aligned_alone(batch, step)
        inputs, target = self.inputs(batch, step)
        prediction = self.pair.predict(inputs, need_prior=aligning)
        time = self.pair.main.process.decoder_time(inputs.t)
        loss, mse = self._main_loss(prediction.controlled, target, time)
        if prediction.prior is None or self.align is None:
            return StepOutput(loss, {"mse": mse})
        terms = self._terms(inputs, target, prediction.prior, step)
        self.meter.update(target, prediction.prior, prediction.controlled, time, terms=terms)
        logs = {"mse": mse, "alignment": terms.alignment, "decoder_r2": terms.r2}
        more = [self._observed(batch, step, draw)[0].loss for draw in range(1, self.options.noises)]
        return StepOutput(sum(more, loss + terms.loss), logs)

    def _main_loss(self, controlled: Tensor, target: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and the plain mean squared error for the log."""
        mse = torch.nn.functional.mse_loss(controlled.float(), target)
        if self.weighting is None:
            return mse, mse.detach()
        errors = (controlled.float() - target).square().flatten(1).mean(dim=1)
        return (self.weighting(target, time, update=False) * errors).mean(), mse.detach()

    def inputs(self, batch: Batch, step: int, draw: int = 0) -> tuple[Inputs, Tensor]:
        """What both passes see, and the target; every random draw is keyed by (seed, step, visit, ``draw``)."""
        process, device = self.pair.main.process, batch.moments.device
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        again = f"/{draw}" if draw else ""

        def normal(stream: str) -> Tensor:
            return self.draws.noise(step, batch.visits, shape, stream + again).to(device)

        latents = latents_from_moments(batch.moments, normal("posterior"))
        noise = normal("noise")
        t = process.sample_timesteps(self.draws.uniform(step, batch.visits, "timestep" + again)).to(device)
        dropped = (self.draws.uniform(step, batch.visits, "caption") < self.caption_dropout).to(device)
        context = drop_captions(batch.context, batch.empty, dropped)
        return Inputs(process.x_t(latents, noise, t), t, context, batch.condition), process.target(latents, noise, t)

    def _aligned_alone(self, batch: Batch, step: int) -> StepOutput:
        """A step of the warm-up."""
        if self.options.teacher is not None:
            self.options.teacher.follow(step)
        seen = [self._observed(batch, step, draw) for draw in range(self.options.noises)]
        terms = seen[0][0]
        # What lies behind the aligned layer has a part in the loss, of nothing: distributed wrappers wait for it.
        loss = sum(each.loss + nothing for each, nothing in seen)
        return StepOutput(loss, {"alignment": terms.alignment, "decoder_r2": terms.r2})

    def _observed(self, batch: Batch, step: int, draw: int) -> tuple[AlignmentTerms, Tensor]:
        """The alignment without a controlled pass, and zero with a graph to everything that the side network gives."""
        inputs, target = self.inputs(batch, step, draw)
        prior, residuals = self.pair.prior(inputs), self.pair.run_side(inputs)
        return self._terms(inputs, target, prior, step), _nothing_of(residuals)

    def _terms(self, inputs: Inputs, target: Tensor, prior: Tensor, step: int) -> AlignmentTerms:
        assert self.align is not None
        options = self.options
        if options.teacher is not None and step >= options.warmup:
            target = options.teacher.target(target, inputs, step)
        if options.shuffled:
            target, prior = target.roll(1, 0), prior.roll(1, 0)
        time = self.pair.main.process.decoder_time(inputs.t)
        return self.align(target, prior, time, x_t=self.pair.scaled(inputs), share=1 / options.noises)

    def _set_weight(self, step: int) -> bool:
        """Whether this step is aligned."""
        if self.aligner is None or self.schedule is None:
            return False
        self.aligner.weight = self.schedule.weight(step)
        return self.aligner.weight > 0


def drop_captions(context: Context, empty: Context, dropped: Tensor) -> dict[str, Tensor]:
    """``context`` with the rows where ``dropped`` (B,) is true replaced by ``empty`` (1, ...).

    Names that ``empty`` has not are left alone: they are the same in the unconditional pass.
    """
    return {
        name: torch.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), empty[name].to(value), value)
        if name in empty
        else value
        for name, value in context.items()
    }


def _nothing_of(values: Any) -> Tensor:
    """Zero, with a graph to every tensor in ``values``."""
    if isinstance(values, Tensor):
        return 0.0 * values.reshape(-1)[0].float()
    if isinstance(values, Mapping):
        values = list(values.values())
    found = [_nothing_of(value) for value in values if isinstance(value, Tensor | Mapping | list | tuple)]
    return sum(found, torch.zeros(()))
