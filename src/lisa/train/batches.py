"""Which samples make which batch: a function of (seed, number of the batch), so that resuming is exact."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from lisa.common.errors import LisaError


class BatchPlan:
    """Endless shuffled batches over ``count`` samples.

    Samples are drawn from one permutation per epoch, keyed by (seed, epoch); a batch may span two epochs, so every
    batch is full. Under several processes each takes its own part of the global batch, and the global batch is the
    same for any number of processes of the same total size.

    Args:
        count: number of samples (>= 1).
        batch_size: samples per process and batch.
        seed: key of the permutations.
        process_index: which process this is.
        processes: how many there are.
    """

    def __init__(self, count: int, batch_size: int, seed: int, process_index: int = 0, processes: int = 1) -> None:
        if count < 1:
            raise LisaError("there are no training samples", "Lower data.held_out or add images")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.process_index, self.processes = process_index, processes
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def visits(self, number: int) -> list[int]:
        """What batch ``number`` (from 0) reads in this process.

        A visit is ``epoch * count + index``: which sample, and which time round. It is unique over the run, so random
        draws keyed by it differ even where a small data set puts one sample into a batch twice.
        """
        first = (number * self.processes + self.process_index) * self.batch_size
        epochs = (divmod(place, self.count) for place in range(first, first + self.batch_size))
        return [epoch * self.count + int(self._permutation(epoch)[place]) for epoch, place in epochs]

    def epoch(self, number: int) -> float:
        """Passes over the data completed before batch ``number``."""
        return number * self.processes * self.batch_size / self.count

    def start_at(self, number: int) -> Iterator[list[int]]:
        """All batches from ``number`` on."""
        while True:
            yield self.visits(number)
            number += 1

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)
