"""One training step of a side network (method.md, "One training step")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lisa.core.aligner import LikelihoodAligner
from lisa.core.meter import LearningMeter
from lisa.core.schedule import WeightSchedule
from lisa.core.terms import AlignmentTerms
from lisa.mains.base import Context, latents_from_moments
from lisa.pairs import Inputs, Pair
from lisa.processes.draws import Draws
from lisa.train.dataset import Batch
from lisa.train.loop import StepOutput


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
        shuffled: align each sample with the residual of the one before it in the batch: the control arm that shows how
            much of a gain is owed to the likelihood score, and how much to an extra head.
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
        *,
        shuffled: bool = False,
    ) -> None:
        self.pair, self.aligner, self.align, self.schedule = pair, aligner, align, schedule
        self.meter, self.draws, self.caption_dropout = meter, draws, caption_dropout
        self.shuffled = shuffled

    def __call__(self, batch: Batch, step: int) -> StepOutput:
        """One forward pass."""
        process = self.pair.main.process
        inputs, target = self.inputs(batch, step)
        aligning = self._set_weight(step)
        prediction = self.pair.predict(inputs, need_prior=aligning)
        loss = torch.nn.functional.mse_loss(prediction.controlled.float(), target)
        if prediction.prior is None or self.align is None:
            return StepOutput(loss, {"mse": loss.detach()})
        time = process.decoder_time(inputs.t)
        aligned = (target, prediction.prior)
        if self.shuffled:
            aligned = (target.roll(1, 0), prediction.prior.roll(1, 0))
        terms = self.align(*aligned, time, x_t=inputs.x_t)
        self.meter.update(target, prediction.prior, prediction.controlled, time, terms=terms)
        logs = {"mse": loss.detach(), "alignment": terms.alignment, "decoder_r2": terms.r2}
        return StepOutput(loss + terms.loss, logs)

    def inputs(self, batch: Batch, step: int) -> tuple[Inputs, Tensor]:
        """What both passes see, and the target; every draw is keyed by (seed, step, visit)."""
        process, device = self.pair.main.process, batch.moments.device
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])

        def normal(stream: str) -> Tensor:
            return self.draws.noise(step, batch.visits, shape, stream).to(device)

        latents = latents_from_moments(batch.moments, normal("posterior"))
        noise = normal("noise")
        t = process.sample_timesteps(self.draws.uniform(step, batch.visits, "timestep")).to(device)
        dropped = (self.draws.uniform(step, batch.visits, "caption") < self.caption_dropout).to(device)
        context = drop_captions(batch.context, batch.empty, dropped)
        return Inputs(process.x_t(latents, noise, t), t, context, batch.condition), process.target(latents, noise, t)

    def _set_weight(self, step: int) -> bool:
        """Whether this step is aligned."""
        if self.aligner is None or self.schedule is None:
            return False
        self.aligner.weight = self.schedule.weight(step)
        return self.aligner.weight > 0


def drop_captions(context: Context, empty: Context, dropped: Tensor) -> dict[str, Tensor]:
    """``context`` with the rows where ``dropped`` (B,) is true replaced by ``empty`` (1, ...)."""
    return {
        name: torch.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), empty[name].to(value), value)
        for name, value in context.items()
    }
