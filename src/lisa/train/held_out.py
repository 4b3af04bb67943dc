"""Held-out readings while training: condition gap, its interval, onset; on fixed samples, noise and noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lisa.train.dataset import EncodedData

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
            right, shuffled = self._sums(shuffled=False), self._sums(shuffled=True)
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

    def _sums(self, *, shuffled: bool) -> SampleSums:
        """Per-sample sums over all processes, in the order of the samples."""
        mine = range(self.accelerator.process_index, len(self.data), self.accelerator.num_processes)
        jobs = [(sample, level) for level in range(self.levels) for sample in mine]
        parts: list[tuple[list[int], SampleSums]] = []
        for first in range(0, len(jobs), self.batch_size):
            chosen = jobs[first : first + self.batch_size]
            parts.append(([sample for sample, _ in chosen], self._pass(chosen, shuffled).apply(torch.Tensor.cpu)))
        gathered = gather_object(parts) if self.accelerator.num_processes > 1 else parts
        samples = [sample for numbers, _ in gathered for sample in numbers]
        return SampleSums.concatenated(sums for _, sums in gathered).grouped(samples)

    @torch.no_grad()
    def _pass(self, jobs: Sequence[tuple[int, int]], shuffled: bool) -> SampleSums:
        """Prior, controlled and decoded of some (sample, noise level) pairs."""
        process, device = self.pair.main.process, self.accelerator.device
        samples = [sample for sample, _ in jobs]
        keys = [sample * self.levels + level for sample, level in jobs]
        batch = self.data.collate(samples, [self.data.read(sample, 0) for sample in samples], device)
        condition = batch.condition
        if shuffled:
            others = [self._other[sample] for sample in samples]
            condition = self.data.collate(others, [self.data.read(i, 0) for i in others], device).condition
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        latents = latents_from_moments(batch.moments, self.draws.noise(_STEP, keys, shape, "posterior").to(device))
        noise = self.draws.noise(_STEP, keys, shape).to(device)
        # Stratified: each sample sees every stratum of the noise levels once.
        place = self.draws.uniform(_STEP, keys, "timestep")
        u = (torch.tensor([level for _, level in jobs]) + place) / self.levels
        t = process.sample_timesteps(u.clamp(1e-6, 1 - 1e-6)).to(device)
        inputs = Inputs(process.x_t(latents, noise, t), t, batch.context, condition)
        target, time = process.target(latents, noise, t), process.decoder_time(t)
        with self.accelerator.autocast():
            if self.aligner is None or not self.aligner.layers:
                prediction, terms = self.pair.predict(inputs), None
            else:
                with self.aligner.observing():
                    prediction = self.pair.predict(inputs)
                    terms = self.aligner(target, prediction.prior, time, x_t=self.pair.scaled(inputs))
        assert prediction.prior is not None
        sums = SampleSums.of(target, prediction.prior, prediction.controlled, terms)
        if not shuffled:
            self.by_noise_level.update_sums(time, sums.prior, sums.controlled, sums.error)
        return sums
