"""The learning meter: what the side network adds, how much of the likelihood score is readable, by noise level.

Control gain and decoder R2 (the residual of arXiv 2606.27192, read as explained variance) cost nothing in training,
since the prior is there. What needs held-out passes is in :mod:`lisa.core.held_out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from lisa.common.errors import LisaError
from lisa.core.residual import likelihood_residual, noise_bins, sample_sums, widened
from lisa.core.terms import AlignmentTerms

_COLUMNS = ("prior", "controlled", "count", "error", "residual", "decoded_count", "skipped")


@dataclass(frozen=True)
class MeterReading:
    """What the meter has seen since the last reset. A number that nothing is known of is NaN.

    Attributes:
        control_gain: ``1 - sum|target - controlled|^2 / sum|target - prior|^2``; 0 while the side network does nothing.
        decoder_r2: ``1 - sum|residual - decoded|^2 / sum|residual|^2``.
        count: samples in ``control_gain``.
        by_bin: the same for each noise level, lowest first: ``low``, ``high`` (timesteps), ``control_gain``,
            ``decoder_r2``, ``count``.
        skipped: samples left out because something in them was not finite.
    """

    control_gain: float
    decoder_r2: float
    count: int
    by_bin: list[dict[str, float]]
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """The reading as JSON can hold it: NaN becomes None."""
        return {
            name: [_without_nan(each) for each in value] if name == "by_bin" else value
            for name, value in _without_nan(asdict(self)).items()
        }


class LearningMeter:
    """Streaming control gain and decoder R2, in equal bins of the timestep.

    Only sums are kept, on the device and without synchronising, so that any split into batches and processes gives the
    same reading as all samples at once. :meth:`read` is the one that waits for the device.

    Args:
        bins: number of noise levels, at least 1.

    Example:
        >>> meter.update(target, prior, controlled, timesteps, terms=terms)
        >>> meter.read().control_gain
    """

    def __init__(self, bins: int = 10) -> None:
        if bins < 1:
            raise LisaError(f"a meter of {bins} bins", "Give at least 1")
        self.bins = bins
        self._sums: Tensor | None = None

    @torch.no_grad()
    def update(
        self,
        target: Tensor,
        prior: Tensor,
        controlled: Tensor,
        timesteps: Tensor,
        decoded: Tensor | None = None,
        *,
        terms: AlignmentTerms | None = None,
    ) -> None:
        """Add a batch.

        Args:
            target: (B, ...), what the model is trained to predict.
            prior: same shape, the prediction without control.
            controlled: same shape, the prediction with control.
            timesteps: (B,), 0 to 1000.
            decoded: same shape, the decoded likelihood score, if there is one.
            terms: instead of ``decoded``, what the aligner returned; idle terms add nothing. Their residual may be
                another than ``target - prior`` (a teacher's, or another sample's): the decoder's R2 is then of that.

        Raises:
            LisaError: the shapes differ.
        """
        residual = likelihood_residual(target, prior)
        error, energy = None, sample_sums(residual)
        read = energy
        if decoded is not None:
            error = sample_sums(likelihood_residual(decoded, residual))
        elif terms is not None:
            error, read = terms.squared_error, terms.squared_residual
        self.update_sums(timesteps, energy, sample_sums(likelihood_residual(target, controlled)), error, read)

    @torch.no_grad()
    def update_sums(
        self,
        timesteps: Tensor,
        prior: Tensor,
        controlled: Tensor,
        error: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> None:
        """Add a batch by its per-sample sums of squares.

        Args:
            timesteps: (B,), 0 to 1000.
            prior: (B,), ``sum|target - prior|^2``.
            controlled: (B,), ``sum|target - controlled|^2``.
            error: (B,), ``sum|residual - decoded|^2``; NaN where a sample has none.
            residual: (B,), ``sum|residual|^2`` of what the decoder had to read; None: ``prior``.
        """
        # Double precision, so that the last batch of a long epoch still counts; Apple's devices have none.
        wide = torch.float32 if prior.device.type == "mps" else torch.float64
        prior, controlled = prior.to(wide), controlled.to(wide)
        error = torch.full_like(prior, math.nan) if error is None else error.to(wide)
        residual = prior if residual is None else residual.to(wide)
        good = prior.isfinite() & controlled.isfinite()
        read = good & error.isfinite() & residual.isfinite()
        zero = torch.zeros_like(prior)
        columns = [
            torch.where(good, prior, zero),
            torch.where(good, controlled, zero),
            good.to(wide),
            torch.where(read, error, zero),
            torch.where(read, residual, zero),
            read.to(wide),
            (~good).to(wide),
        ]
        times = widened(timesteps.to(prior.device)).expand(prior.shape[0])
        sums = noise_bins(times, self.bins, wide).T @ torch.stack(columns, dim=1)
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None, *, local: bool = False) -> MeterReading:
        """The reading so far, over all processes. Every process must call it; the meter itself stays as it is.

        Args:
            reduce: sums a tensor over processes; ``torch.distributed``'s, where it is initialised, by default.
            local: read this process's samples only.
        """
        sums = torch.zeros(self.bins, len(_COLUMNS), dtype=torch.float64) if self._sums is None else self._sums
        if not local:
            sums = (reduce or _all_reduced)(sums.clone())
        rows = sums.cpu().double()
        width = 1000.0 / self.bins
        by_bin = [{"low": i * width, "high": (i + 1) * width, **_gains(row)} for i, row in enumerate(rows)]
        whole = _gains(rows.sum(dim=0))
        return MeterReading(
            control_gain=whole["control_gain"],
            decoder_r2=whole["decoder_r2"],
            count=int(whole["count"]),
            by_bin=by_bin,
            skipped=round(float(rows[:, _COLUMNS.index("skipped")].sum())),
        )

    def reset(self) -> None:
        """Forget everything."""
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        """This process's sums, for a checkpoint."""
        return {"bins": self.bins, "sums": None if self._sums is None else self._sums.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            LisaError: it is that of a meter with other bins.
        """
        if state["bins"] != self.bins:
            raise LisaError(
                f"a meter of {self.bins} bins cannot go on from one of {state['bins']}", "Use the same bins"
            )
        self._sums = None if state["sums"] is None else state["sums"].clone()


def _gains(row: Tensor) -> dict[str, float]:
    prior, controlled, count, error, residual, _, _ = row.tolist()
    gain = 1 - controlled / prior if prior > 0 else math.nan
    r2 = 1 - error / residual if residual > 0 else math.nan
    return {"control_gain": gain, "decoder_r2": r2, "count": round(count)}


def _all_reduced(sums: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return sums
    if distributed.get_backend() == "nccl":
        sums = sums.cuda()  # a process that has seen no batch holds its zeros on the CPU
    distributed.all_reduce(sums)
    return sums


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
