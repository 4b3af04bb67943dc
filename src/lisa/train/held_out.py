"""Held-out readings while training: condition gap, its interval, onset; on fixed samples, noise and noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from lisa.core.aligner import LikelihoodAligner
from lisa.core.held_out import ConditionGap, OnsetDetector, SampleSums, condition_gap, derangement
from lisa.core.meter import LearningMeter
from lisa.core.schedule import WeightSchedule
from lisa.mains.base import latents_from_moments
from lisa.pairs import Inputs, Pair
from lisa.processes.draws import Draws
from lisa.train.dataset import Batch, EncodedData

_STEP = -1  # no training step has this number, so its draws are the held-out set's own


class HeldOutMeter:
    """Reads the meter on held-out samples, each at several noise levels spread evenly.

    Args:
        pair: main and side network.
        aligner: for the decoder's R2; None in a plain run.
        schedule: is told every reading.
        data: the held-out samples.
        draws: of the held-out set: the same for all runs that are to be compared.
        levels: noise levels per sample.
        batch_size: samples per pass.
        accelerator: readings are shared between its processes.
    """

    def __init__(
        self,
        pair: Pair,
        aligner: LikelihoodAligner | None,
        schedule: WeightSchedule | None,
        data: EncodedData,
        draws: Draws,
        levels: int,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        self.pair, self.aligner, self.schedule, self.data = pair, aligner, schedule, data
        self.draws, self.levels, self.batch_size, self.accelerator = draws, levels, batch_size, accelerator
        self.onset = OnsetDetector()
        self.last: ConditionGap | None = None
        self.by_noise_level = LearningMeter()  # of the last reading, with the right conditions
        self._other = derangement(len(data), seed=draws.seed).tolist()

    def read(self, step: int) -> ConditionGap:
        """A reading with 95% intervals over the samples. Every process must call it."""
        side = self.pair.side
        callee, training = side.callee, side.module.training
        # Not through the distributed wrapper: it may synchronise at every call, and processes make different numbers.
        side.callee = side.module.eval()
        self.by_noise_level.reset()
        try:
            right, shuffled = self._sums()
        finally:
            side.callee = callee
            side.module.train(training)
        gap = condition_gap(right, shuffled)
        self.last = gap
        self.onset.observe(step, gap.gap)
        if self.schedule is not None:
            self.schedule.observe(step, self.onset.onset is not None, gap.decoder_gap.value)
        return gap

    def state_dict(self) -> dict[str, Any]:
        """The onset so far."""
        return {"onset": self.onset.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.onset.load_state_dict(state["onset"])

    def _sums(self) -> list[SampleSums]:
        """Per-sample sums over all processes, in the order of the samples: with right and with shuffled conditions."""
        mine = range(self.accelerator.process_index, len(self.data), self.accelerator.num_processes)
        jobs = [(sample, level) for level in range(self.levels) for sample in mine]
        parts: list[tuple[list[int], list[SampleSums]]] = []
        for first in range(0, len(jobs), self.batch_size):
            chosen = jobs[first : first + self.batch_size]
            parts.append(([sample for sample, _ in chosen], self._passes(chosen)))
        gathered = gather_object(parts) if self.accelerator.num_processes > 1 else parts
        samples = [sample for numbers, _ in gathered for sample in numbers]
        by_kind = zip(*(both for _, both in gathered), strict=True)
        return [SampleSums.concatenated(sums).grouped(samples) for sums in by_kind]

    @torch.no_grad()
    def _passes(self, jobs: Sequence[tuple[int, int]]) -> list[SampleSums]:
        """Prior, and controlled and decoded with right and shuffled conditions, of some (sample, noise level) pairs."""
        process, device = self.pair.main.process, self.accelerator.device
        samples = [sample for sample, _ in jobs]
        keys = [sample * self.levels + level for sample, level in jobs]
        batch = self._collated(samples)
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        latents = latents_from_moments(batch.moments, self.draws.noise(_STEP, keys, shape, "posterior").to(device))
        noise = self.draws.noise(_STEP, keys, shape).to(device)
        # Stratified: each sample sees every stratum of the noise levels once.
        place = self.draws.uniform(_STEP, keys, "timestep")
        u = (torch.tensor([level for _, level in jobs]) + place) / self.levels
        t = process.sample_timesteps(u.clamp(1e-6, 1 - 1e-6)).to(device)
        inputs = Inputs(process.x_t(latents, noise, t), t, batch.context, batch.condition)
        target, time = process.target(latents, noise, t), process.decoder_time(t)
        conditions = [batch.condition, self._collated([self._other[sample] for sample in samples]).condition]
        aligner = self.aligner if self.aligner is not None and self.aligner.layers else None
        found = []
        with self.accelerator.autocast(), aligner.observing() if aligner is not None else nullcontext():
            for prediction in self.pair.predictions(inputs, conditions):
                assert prediction.prior is not None
                terms = None
                if aligner is not None:
                    terms = aligner(target, prediction.prior, time, x_t=self.pair.scaled(inputs))
                found.append(SampleSums.of(target, prediction.prior, prediction.controlled, terms))
        right = found[0]
        self.by_noise_level.update_sums(time, right.prior, right.controlled, right.error)
        return [sums.apply(torch.Tensor.cpu) for sums in found]

    def _collated(self, samples: Sequence[int]) -> Batch:
        return self.data.collate(samples, [self.data.read(i, 0) for i in samples], self.accelerator.device)
