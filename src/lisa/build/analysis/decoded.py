"""The likelihood score that a run's decoder reads off the features, beside the true residual averaged over noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lisa.build import parts
from lisa.build.analysis.features import Encoded, FeatureReader, Level
from lisa.build.analysis.film import film
from lisa.common.errors import LisaError
from lisa.common.files import read_json
from lisa.common.intervals import bootstrap_mean
from lisa.common.runfolder import RunFolder
from lisa.core.aligner import LikelihoodAligner
from lisa.core.terms import AlignmentTerms
from lisa.train.checkpoint import checkpoint_name
from lisa.train.config import TrainConfig

DRAWS = 16  # of the noise, per picture


@dataclass(frozen=True)
class Scores:
    """Of the first samples at one level, each (B, C, h, w): of the first noise, and means over :data:`DRAWS` noises.

    Of clips (B, C, h, f w), the frames from left to right.
    """

    residual: np.ndarray
    mean_residual: np.ndarray
    decoded: np.ndarray
    mean_decoded: np.ndarray

    def agreement(self, seed: int) -> dict[str, Any]:
        """Cosine between decoded score and residual, mean over samples, with an interval: of one noise, and of all."""
        return {
            "one draw": bootstrap_mean(_cosines(self.decoded, self.residual), seed=seed),
            "mean": bootstrap_mean(_cosines(self.mean_decoded, self.mean_residual), seed=seed),
        }


def find_decoder(run: Path, config: TrainConfig) -> tuple[Path | None, str]:
    """The decoder's weights of the checkpoint that the side network is of, or None and why there are none."""
    if not config.align.active:
        return None, "this run was not aligned, so it has no decoder"
    folder = RunFolder(run)
    step = read_json(folder.summary).get("steps") if folder.summary.is_file() else None
    file = folder.checkpoints / checkpoint_name(step or 0) / "decoder.safetensors"
    if file.is_file() and step is not None:  # a run that is going on has later ones, which are no match
        return file, ""
    what = "no checkpoint left" if step is None else f"no checkpoint left of step {step}, as its side network is"
    return None, f"the run has {what}; only checkpoints hold the decoder"


def load_decoder(config: TrainConfig, reader: FeatureReader, weights: Path) -> LikelihoodAligner:
    """The run's aligner with its trained decoders, attached to the side network of ``reader``.

    Raises:
        LisaError: the file is damaged, or of other layers.
    """
    from safetensors.torch import load_file

    aligner, _ = parts.build_alignment(config, reader.pair)
    assert aligner is not None
    try:
        aligner.load_state_dict(load_file(weights))
    except Exception as error:  # safetensors and torch raise several kinds; all mean the same
        aligner.remove()
        raise LisaError(
            f"{str(weights)!r} is damaged, or is not the decoder of this configuration ({type(error).__name__})",
            "Remove the checkpoint: everything but the decoded score can be analysed without it",
        ) from error
    return aligner.to(reader.device).eval()


@torch.no_grad()
def decoded_scores(
    aligner: LikelihoodAligner, reader: FeatureReader, samples: Encoded, level: Level, count: int
) -> Scores:
    """Decode for the first ``count`` samples as they are; of several aligned layers, the mean of their decoders.

    The residual of one noise is nearly all chance. Its mean over noises with the picture fixed is what there is to
    decode, blurred by what the picture has beyond its condition.
    """
    jobs = [(draw, row) for draw in range(DRAWS) for row in range(count)]
    residuals, decoded = [], []
    for first in range(0, len(jobs), reader.batch):
        terms = _decode(aligner, reader, samples, level, jobs[first : first + reader.batch])
        residuals.append(film(terms.residual.cpu()))
        decoded.append(film(torch.stack(list(terms.decoded.values())).mean(0).float().cpu()))
    true, read = (torch.cat(each).unflatten(0, (DRAWS, count)).numpy() for each in (residuals, decoded))
    return Scores(residual=true[0], mean_residual=true.mean(0), decoded=read[0], mean_decoded=read.mean(0))


def _decode(
    aligner: LikelihoodAligner,
    reader: FeatureReader,
    samples: Encoded,
    level: Level,
    jobs: Sequence[tuple[int, int]],
) -> AlignmentTerms:
    """What the aligner gives for (draw of the noise, sample) pairs."""
    process, rows = reader.pair.main.process, [row for _, row in jobs]
    noise = torch.cat([reader.noise(samples, [row], level, draw) for draw, row in jobs])
    inputs = reader.inputs(samples, level, condition=rows, picture=rows, noise=noise, caption=rows)
    target = process.target(samples.latents[rows].to(reader.device), noise.to(reader.device), inputs.t)
    with aligner.observing():
        prediction = reader.pair.predict(inputs)
        x_t, time = reader.pair.scaled(inputs), process.decoder_time(inputs.t)
        terms: AlignmentTerms = aligner(target, prediction.prior, time, x_t=x_t)
    return terms


def _cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (one, two))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(lengths > 0, lengths, 1)
