"""Random draws keyed by (seed, step, sample, stream), not by the state of a generator.

So two arms of a comparison see the same noise, timesteps and dropout whatever else draws random numbers in between, and
so does a run that is resumed, batched or spread over processes differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Draws that depend on nothing but their key.

    Args:
        seed: of the run.

    Example:
        >>> draws = Draws(seed=0)
        >>> noise = draws.noise(step, sample_numbers, (4, 64, 64))
        >>> drop_caption = draws.uniform(step, sample_numbers, "caption") < 0.1
    """

    seed: int

    def noise(self, step: int, samples: Sequence[int], shape: Sequence[int], stream: str = "noise") -> Tensor:
        """Standard normal numbers.

        Args:
            step: of the training; a fixed number where the noise must stay the same.
            samples: the samples' numbers in the data set, B of them.
            shape: of one sample.
            stream: draws of different purposes are independent.

        Returns:
            (B, *shape), fp32 on the CPU.
        """
        out = np.empty((len(samples), *shape), dtype=np.float32)
        for row, sample in enumerate(samples):
            out[row] = self._generator(step, sample, stream).standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(out)

    def uniform(self, step: int, samples: Sequence[int], stream: str = "timestep") -> Tensor:
        """Uniform numbers in the open interval (0, 1), one per sample: (B,), fp32 on the CPU."""
        # Odd multiples of 2^-24: exact in fp32, and neither 0 nor 1.
        cells = [int(self._generator(step, sample, stream).integers(2**23)) for sample in samples]
        return torch.tensor([(cell + 0.5) / 2**23 for cell in cells], dtype=torch.float32)

    def _generator(self, step: int, sample: int, stream: str) -> np.random.Generator:
        key = hashlib.blake2b(f"{self.seed}/{step}/{int(sample)}/{stream}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
