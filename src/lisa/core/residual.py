"""The residual ``target - prior``, a one-sample estimate of the scaled likelihood score, and its noise-level weighting.

A weighting is one class and one line of registration: ``@register_weighting("name")``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from lisa.common.errors import LisaError, choose

#: Signal-to-noise ratio (B,) of timesteps (B,) as the aligner is given them: 0 to 1000.
SignalToNoise = Callable[[Tensor], Tensor]
PREDICTIONS = ("epsilon", "v_prediction", "flow", "edm")


def likelihood_residual(target: Tensor, prior: Tensor) -> Tensor:
    """``target - prior``, without gradient, in fp32 or wider (method of arXiv 2606.27192).

    Args:
        target: what the model is trained to predict, any shape (B, ...).
        prior: the frozen main network's prediction without control, same shape.

    Raises:
        LisaError: the shapes differ.
    """
    if target.shape != prior.shape:
        raise LisaError(
            f"target {tuple(target.shape)} and prior {tuple(prior.shape)} have different shapes",
            "Pass the training target and the main network's prediction of the same samples",
        )
    return widened(target.detach()) - widened(prior.detach())


def widened(tensor: Tensor) -> Tensor:
    """``tensor`` in at least fp32: sums of squares overflow fp16 and starve bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sample_sums(values: Tensor) -> Tensor:
    """Sum of squares of each sample: (B, ...) to (B,), in fp32 or wider."""
    return widened(values).square().flatten(1).sum(dim=1)


def noise_bins(timesteps: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """Which of ``bins`` equal parts of 0..1000 each timestep lies in, one-hot: (B,) to (B, bins).

    A product with it adds up per bin without synchronising the device, and in a fixed order.
    """
    index = (widened(timesteps) * (bins / 1000.0)).long().clamp(0, bins - 1)
    return (index[:, None] == torch.arange(bins, device=timesteps.device)).to(dtype)


@dataclass(frozen=True)
class WeightingContext:
    """What a weighting may need to know: the model's signal-to-noise ratio and what it predicts."""

    snr: SignalToNoise | None = None
    prediction: str = "epsilon"


class NoiseLevelWeighting(nn.Module):
    """Weight of each sample in the alignment loss, from its noise level.

    ``forward(residual (B, ...), timesteps (B,) 0..1000, update)`` returns weights (B,) without gradient. ``update`` is
    true in training: only then may a running estimate learn. State belongs in buffers, so that checkpoints hold it.
    """

    def __init__(self, context: WeightingContext) -> None:
        super().__init__()

    def forward(self, residual: Tensor, timesteps: Tensor, update: bool) -> Tensor:
        """Weights (B,)."""
        raise NotImplementedError


_WEIGHTINGS: dict[str, type[NoiseLevelWeighting]] = {}


def register_weighting(name: str) -> Callable[[type[NoiseLevelWeighting]], type[NoiseLevelWeighting]]:
    """Class decorator: make a weighting available by name."""

    def register(weighting: type[NoiseLevelWeighting]) -> type[NoiseLevelWeighting]:
        _WEIGHTINGS[name] = weighting
        return weighting

    return register


def weighting_names() -> tuple[str, ...]:
    """Names that :func:`make_weighting` takes."""
    return tuple(_WEIGHTINGS)


def make_weighting(
    name: str, *, snr: SignalToNoise | None = None, prediction: str = "epsilon", **options: float
) -> NoiseLevelWeighting:
    """The noise-level weighting of that name.

    Args:
        name: ``plain`` (the reference), ``normalised``, ``min-snr``, or one registered.
        snr: signal-to-noise ratio by timestep (0..1000), where the weighting needs it.
        prediction: ``epsilon``, ``v_prediction``, ``flow`` or ``edm``.
        options: of the weighting; ``min-snr`` has ``gamma``.

    Raises:
        LisaError: unknown name or prediction, or ``snr`` missing.
    """
    choose("weighting", name, _WEIGHTINGS)
    choose("prediction", prediction, PREDICTIONS)
    return _WEIGHTINGS[name](WeightingContext(snr, prediction), **options)


@register_weighting("plain")
class PlainWeighting(NoiseLevelWeighting):
    """The reference: plain mean squared error in the model's own target space, at every noise level."""

    def forward(self, residual: Tensor, timesteps: Tensor, update: bool) -> Tensor:
        """Ones (B,)."""
        return torch.ones(residual.shape[0], device=residual.device, dtype=residual.dtype)


@register_weighting("normalised")
class NormalisedWeighting(NoiseLevelWeighting):
    """Scales each noise level's residual to unit energy, by a running mean of its energy in 20 bins.

    In one model's target space the residual's energy varies by orders of magnitude over the noise levels; here every
    level weighs the same. Under several processes the estimate is that of all their samples together.
    """

    BINS = 20
    DECAY = 0.999  # per sample of the bin: remembers about a thousand
    FLOOR = 1e-6  # of the energy, where the prior is perfect

    energy: Tensor
    count: Tensor

    def __init__(self, context: WeightingContext) -> None:
        super().__init__(context)
        self.register_buffer("energy", torch.zeros(self.BINS))
        self.register_buffer("count", torch.zeros(self.BINS))

    def forward(self, residual: Tensor, timesteps: Tensor, update: bool) -> Tensor:
        """One over the estimated mean square of the residual at each sample's noise level, (B,)."""
        member = noise_bins(timesteps, self.BINS, self.energy.dtype)
        if update:
            mean_squares = sample_sums(residual) / residual[0].numel()
            self._learn(member, mean_squares.to(self.energy.dtype))
        seen = (self.count > 0).to(self.energy.dtype)
        overall = (self.energy * self.count).sum() / self.count.sum().clamp(min=1)
        # A level never seen yet (possible outside training only) takes the mean of those seen; before any, one.
        overall = torch.where(self.count.sum() > 0, overall, torch.ones_like(overall))
        estimate = seen * self.energy + (1 - seen) * overall
        return (1 / estimate.clamp(min=self.FLOOR))[member.argmax(dim=1)].to(residual.dtype)

    @torch.no_grad()
    def _learn(self, member: Tensor, mean_squares: Tensor) -> None:
        finite = mean_squares.isfinite()  # one broken sample must not spoil the estimate for good
        member = member * finite[:, None]
        sums = torch.stack([member.sum(dim=0), torch.where(finite, mean_squares, 0) @ member])
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(sums)
        number, total = sums
        # The plain mean while there are few samples, then an exponential one: never biased towards its start.
        rate = torch.maximum(1 - self.DECAY**number, number / (self.count + number).clamp(min=1))
        self.energy.lerp_(total / number.clamp(min=1), rate)
        self.count.add_(number)


@register_weighting("min-snr")
class MinSNRWeighting(NoiseLevelWeighting):
    """Min-SNR weighting (arXiv 2303.09556; gamma 5): min(snr, gamma) in x_0 space, brought to the target's.

    The square error of x_0 is that of the target times 1/snr (epsilon), 1/(1 + snr) (v, EDM), 1/(1 + sqrt(snr))^2
    (flow).
    """

    GAMMA = 5.0

    def __init__(self, context: WeightingContext, gamma: float = GAMMA) -> None:
        super().__init__(context)
        if context.snr is None:
            raise LisaError(
                "the weighting 'min-snr' needs the signal-to-noise ratio", "Pass snr=, a function of the timesteps"
            )
        self._snr, self._prediction, self._gamma = context.snr, context.prediction, gamma

    def forward(self, residual: Tensor, timesteps: Tensor, update: bool) -> Tensor:
        """Weights (B,); with epsilon, 1 at zero SNR (the limit)."""
        snr = widened(self._snr(timesteps).detach())
        capped = snr.clamp(max=self._gamma)
        if self._prediction == "epsilon":
            weights = torch.where(snr > 0, capped / snr, 1.0)
        elif self._prediction in ("v_prediction", "edm"):
            weights = capped / (1 + snr)
        else:
            weights = capped / (1 + snr.sqrt()).square()
        return weights.to(residual.dtype)
