"""Features of a side network on samples whose condition, picture, noise and caption can be mixed at will."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lisa.build import parts
from lisa.build.analysis.film import film, picture_film
from lisa.common.errors import LisaError
from lisa.core.decoder import to_map
from lisa.core.feature_tap import FeatureTap
from lisa.core.frames import fold_feature, unfold
from lisa.core.residual import likelihood_residual
from lisa.data.samples import ByteArray, Subset
from lisa.data.transforms import PairedTransform
from lisa.mains.base import latents_from_moments
from lisa.pairs import Inputs, Pair
from lisa.processes.base import ForwardProcess
from lisa.processes.draws import Draws
from lisa.sides.attach import default_select
from lisa.train.dataset import EncodedData

_STEP = -2  # no training step and no held-out reading has this number

#: Features by layer, each (B, C, h, w), fp32; of clips (B, C, h, f w), the frames from left to right.
Features = dict[str, np.ndarray]


@dataclass(frozen=True)
class Level:
    """A noise level: ``time`` in 0..1000 and the process's own ``t``, a tensor of one number."""

    time: float
    t: Tensor


def noise_levels(process: ForwardProcess, count: int) -> list[Level]:
    """The middles of ``count`` equal parts of the decoder's time, 0..1000, as near as training's timesteps come."""
    found = process.sample_timesteps((torch.arange(2**14) + 0.5) / 2**14)
    times = process.decoder_time(found).double()
    middles = [(number + 0.5) * 1000 / count for number in range(count)]
    nearest = [int((times - middle).abs().argmin()) for middle in middles]
    return [Level(float(times[place]), found[place]) for place in nearest]


@dataclass(frozen=True)
class Encoded:
    """Samples, encoded; everything lies on the CPU.

    Attributes:
        name: which samples; keys their noise.
        latents: (N, C, h, w), or (N, C, f, h, w).
        conditions: what the side network reads, (N, ...).
        context: what the captions became, or the first frames of clips that go on from them, each (N, ...).
        pictures: the condition pictures, uint8 (H, W, 3 n); of clips (H, f W, 3 n), one for each latent frame.
        captions: in words.
    """

    name: str
    latents: Tensor
    conditions: Tensor
    context: dict[str, Tensor]
    pictures: list[ByteArray]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def encode(
    name: str, samples: Subset, transform: PairedTransform, pair: Pair, draws: Draws, batch: int, device: torch.device
) -> Encoded:
    """Encode ``samples`` as the training did, never mirrored. Nothing is cached: run folders are only read."""
    seen = parts.Still(samples, transform)
    data = EncodedData(
        samples, pair.main, parts.still(transform), Path(), (), pair.side.reads, pair.side.condition_channels // 3
    )
    batches = []
    for first in range(0, len(samples), batch):
        rows = range(first, min(first + batch, len(samples)))
        batches.append(data.collate(rows, [data.read(row, 0) for row in rows], device))
    moments = torch.cat([each.moments.cpu() for each in batches])
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    pictures = [sample.condition for sample in (seen[row] for row in range(len(seen))) if sample.condition is not None]
    if pair.main.video:
        pictures = [picture_film(picture, moments.shape[2]) for picture in pictures]
    return Encoded(
        name=name,
        latents=latents_from_moments(moments, draws.noise(_STEP, range(len(samples)), shape, f"{name}/posterior")),
        conditions=torch.cat([each.condition.cpu() for each in batches]),
        context={key: torch.cat([each.context[key].cpu() for each in batches]) for key in batches[0].context},
        pictures=pictures,
        captions=list(data.captions),
    )


class FeatureReader:
    """Runs a side network on mixed samples.

    Args:
        pair: on ``device``, in eval mode.
        draws: of the noise.
        batch: samples per pass.
        device: where it runs.
    """

    def __init__(self, pair: Pair, draws: Draws, batch: int, device: torch.device) -> None:
        self.pair, self.draws, self.batch, self.device = pair, draws, batch, device

    def noise(self, samples: Encoded, rows: Sequence[int], level: Level, draw: int = 0) -> Tensor:
        """The noise of some samples at a level, (B, C, h, w), the same in every call; ``draw``: another one."""
        stream = f"{samples.name}/{level.time:.3f}/{draw}"
        return self.draws.noise(_STEP, rows, samples.latents.shape[1:], stream)

    def inputs(
        self,
        samples: Encoded,
        level: Level,
        *,
        condition: Sequence[int],
        picture: Sequence[int],
        noise: Tensor,
        caption: Sequence[int],
    ) -> Inputs:
        """Inputs whose parts come from different rows of ``samples``."""
        t = level.t.expand(len(noise)).to(self.device)
        latents, noise = samples.latents[list(picture)].to(self.device), noise.to(self.device)
        context = {name: value[list(caption)].to(self.device) for name, value in samples.context.items()}
        x_t = self.pair.main.process.x_t(latents, noise, t)
        return Inputs(x_t, t, context, samples.conditions[list(condition)].to(self.device))

    def as_they_are(self, samples: Encoded, rows: Sequence[int], level: Level, draw: int = 0) -> Inputs:
        """Inputs of samples with their own condition, picture and caption."""
        noise = self.noise(samples, rows, level, draw)
        return self.inputs(samples, level, condition=rows, picture=rows, noise=noise, caption=rows)

    def residuals(self, samples: Encoded, level: Level) -> Tensor:
        """``target - prior`` of all samples as they are, (N, C, h, w); of the main network alone."""
        process, found = self.pair.main.process, []
        for first in range(0, len(samples), self.batch):
            rows = range(first, min(first + self.batch, len(samples)))
            inputs = self.as_they_are(samples, rows, level)
            noise = self.noise(samples, rows, level).to(self.device)
            target = process.target(samples.latents[list(rows)].to(self.device), noise, inputs.t)
            found.append(likelihood_residual(target, self.pair.prior(inputs)).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def read(self, inputs: Inputs) -> Features:
        """Features of all layers.

        Raises:
            LisaError: a layer's are not finite, or are neither maps nor tokens.
        """
        size = (inputs.x_t.shape[-2], inputs.x_t.shape[-1])
        found: dict[str, list[np.ndarray]] = {}
        with self._taps() as taps:
            for first in range(0, len(inputs.x_t), self.batch):
                self.pair.run_side(_rows(inputs, slice(first, first + self.batch)))
                for name, tap in taps.items():
                    count = min(self.batch, len(inputs.x_t) - first)
                    feature = _as_film(tap.read(size), inputs.x_t[:count], name).float().cpu()
                    if not feature.isfinite().all():
                        raise LisaError(f"the feature of layer {name!r} is not finite", "The training has diverged")
                    found.setdefault(name, []).append(feature.numpy())
        return {name: np.concatenate(batches) for name, batches in found.items()}

    @contextmanager
    def _taps(self) -> Iterator[dict[str, FeatureTap]]:
        """A tap on every layer that can be aligned, gone afterwards."""
        side = self.pair.side
        select = default_select(side.module)
        taps = {
            layer.name: FeatureTap(side.module, layer.path, side.tap, name=layer.name, select=select)
            for layer in side.layers()
        }
        try:
            with ExitStack() as stack:
                for tap in taps.values():
                    stack.enter_context(tap.observing())
                yield taps
        finally:
            for tap in taps.values():
                tap.remove()


def _as_film(feature: Tensor, x_t: Tensor, layer: str) -> Tensor:
    """A feature as a map per sample; of clips all frames in one."""
    frames = x_t.shape[2] if x_t.ndim == 5 else 1
    maps = to_map(fold_feature(feature, len(x_t), frames, layer), (x_t.shape[-2], x_t.shape[-1]))
    return film(unfold(maps, frames)) if x_t.ndim == 5 else maps


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    context = {name: value[rows] for name, value in inputs.context.items()}
    return replace(inputs, x_t=inputs.x_t[rows], t=inputs.t[rows], context=context, condition=inputs.condition[rows])
