"""The method's table, proven where everything is known: (x_0, c) jointly Gaussian.

The means of the target under the prior p(. | x_t) and the posterior p(. | x_t, c) come from Gaussian conditioning of
the joint (x_0, noise); the likelihood score g comes from differentiating log p(c | x_t). The two share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lisa.core import FeatureTap, LikelihoodAligner, make_weighting
from lisa.processes import DDPMProcess, EDMProcess, ForwardProcess, RectifiedFlowProcess

X, C = 3, 2  # dimensions of x_0 and of the condition
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESSES = {
    "epsilon": DDPMProcess({**SD, "prediction_type": "epsilon"}),
    "epsilon zero SNR": DDPMProcess({**SD, "prediction_type": "epsilon", "rescale_betas_zero_snr": True}),
    "v": DDPMProcess({**SD, "prediction_type": "v_prediction"}),
    "v zero SNR": DDPMProcess({**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    "flow": RectifiedFlowProcess(),
    "edm": EDMProcess(),
}
CONTINUOUS = {"flow": [0.02, 0.3, 0.7, 0.98, 1.0], "edm": [0.02, 0.3, 0.7, 5.0, 80.0]}
CASES = [(name, t) for name in PROCESSES for t in CONTINUOUS.get(name, [0, 20, 300, 700, 999])]


@dataclass
class World:
    """x_0 ~ N(mean, cov), c = reads x_0 + N(0, spread). Noise of the process at t: alpha, sigma."""

    mean: Tensor
    cov: Tensor
    reads: Tensor
    spread: Tensor

    @classmethod
    def make(cls, mean: float = 0.5) -> World:
        generator = torch.Generator().manual_seed(0)
        random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        root, spread = random(X, X), random(C, C)
        return cls(
            mean * random(X), root @ root.T / X + 0.3 * eye(X), random(C, X), spread @ spread.T / C + 0.2 * eye(C)
        )

    def target_map(self, process: ForwardProcess, t: Tensor, given_c: bool) -> tuple[Tensor, Tensor]:
        """Matrix and offset of E[target | x_t (, c)], an affine function of the stacked (x_t, c)."""
        # z = (x_0, noise); everything observed is linear in z plus the condition's own noise.
        alpha, sigma = (float(each) for each in process.alpha_sigma(t))
        z_mean = torch.cat([self.mean, torch.zeros(X, dtype=torch.float64)])
        z_cov = torch.block_diag(self.cov, eye(X))
        sees = torch.cat([alpha * eye(X), sigma * eye(X)], dim=1)
        own = torch.zeros(X, X, dtype=torch.float64)
        if given_c:
            sees = torch.cat([sees, torch.cat([self.reads, torch.zeros(C, X, dtype=torch.float64)], dim=1)])
            own = torch.block_diag(own, self.spread)
        gain = z_cov @ sees.T @ torch.linalg.inv(sees @ z_cov @ sees.T + own)
        offset = z_mean - gain @ (sees @ z_mean)

        def target(z: Tensor) -> Tensor:  # rows of z; the process's own formula, linear in x_0 and noise
            return process.target(z[:, :X], z[:, X:], t.expand(len(z)))

        matrix = target(gain.T.contiguous()).T
        if not given_c:
            matrix = torch.cat([matrix, torch.zeros(X, C, dtype=torch.float64)], dim=1)
        return matrix, target(offset[None])[0]

    def score(self, process: ForwardProcess, t: Tensor, x_t: Tensor, c: Tensor) -> Tensor:
        """grad of log p(c | x_t) by x_t, by automatic differentiation. Rows are samples."""
        alpha, sigma = (float(each) for each in process.alpha_sigma(t))
        x_t = x_t.clone().requires_grad_()
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * eye(X))
        x0_mean = self.mean + (x_t - alpha * self.mean) @ gain.T
        c_cov = self.reads @ (self.cov - alpha * gain @ self.cov) @ self.reads.T + self.spread
        p = torch.distributions.MultivariateNormal(x0_mean @ self.reads.T, covariance_matrix=c_cov)
        return torch.autograd.grad(p.log_prob(c).sum(), x_t)[0]

    def x0_gap(self, process: ForwardProcess, t: Tensor, x_t: Tensor, c: Tensor) -> Tensor:
        """D = E[x_0 | x_t, c] - E[x_0 | x_t], by a Bayes update of the second with c."""
        alpha, sigma = (float(each) for each in process.alpha_sigma(t))
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * eye(X))
        x0_mean, x0_cov = self.mean + (x_t - alpha * self.mean) @ gain.T, self.cov - alpha * gain @ self.cov
        update = x0_cov @ self.reads.T @ torch.linalg.inv(self.reads @ x0_cov @ self.reads.T + self.spread)
        return (c - x0_mean @ self.reads.T) @ update.T


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def observed(world: World, process: ForwardProcess, t: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, c, target) whose empirical mean and covariance are exactly the population's."""
    z = torch.randn(count, 2 * X + C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / count)).T
    x0 = world.mean + z[:, :X] @ torch.linalg.cholesky(world.cov).T
    noise = z[:, X : 2 * X]
    c = x0 @ world.reads.T + z[:, 2 * X :] @ torch.linalg.cholesky(world.spread).T
    times = t.expand(count)
    return process.x_t(x0, noise, times), c, process.target(x0, noise, times)


@pytest.mark.parametrize(("name", "t"), CASES)
def test_the_mean_residual_is_the_likelihood_score_times_the_factor(name, t) -> None:
    process, world, time = PROCESSES[name], World.make(), torch.tensor([t])
    x_t, c, _ = observed(world, process, time, 20)
    (posterior, b), (prior, b0) = (world.target_map(process, time, given_c) for given_c in (True, False))
    mean_residual = torch.cat([x_t, c], dim=1) @ (posterior - prior).T + (b - b0)
    gap = world.x0_gap(process, time, x_t, c)
    torch.testing.assert_close(mean_residual, process.denoised_factor(time).double() * gap, rtol=1e-4, atol=1e-6)

    score, factor = world.score(process, time, x_t, c), process.residual_factor(time).double()
    if torch.isinf(factor):
        assert not score.any(), "at pure noise x_t says nothing about c; the table reads infinity times zero"
    else:
        torch.testing.assert_close(mean_residual, factor * score, rtol=1e-4, atol=1e-6)
    carries = not (name.startswith("epsilon") and float(process.alpha_sigma(time)[0]) == 0)
    assert (mean_residual.abs().max() > 1e-3) == carries, "epsilon at zero SNR carries no signal, all else does"


class LinearDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(X + C, X, 1, dtype=torch.float64)

    def forward(self, feature: Tensor, timesteps: Tensor, size: tuple[int, int], x_t: Tensor | None) -> Tensor:
        return self.linear(feature)


@pytest.mark.parametrize("weighting", ["plain", "normalised"])
@pytest.mark.parametrize(("name", "t"), [(n, t) for n, t in CASES if t in (0.3, 0.7, 1.0, 5.0, 20, 300, 999)])
def test_a_linear_decoder_trained_by_our_loss_becomes_the_score(name, t, weighting) -> None:
    """Trained on single noisy targets, never shown a score: the least squares solution is its conditional mean."""
    process, world, time = PROCESSES[name], World.make(), torch.tensor([t])
    x_t, c, target = observed(world, process, time, 200)
    matrix, offset = world.target_map(process, time, given_c=False)
    prior = torch.cat([x_t, c], dim=1) @ matrix.T + offset
    feature = torch.cat([x_t, c], dim=1)[:, :, None, None]

    side = nn.Sequential(nn.Identity())
    aligner = LikelihoodAligner(
        {"feature": FeatureTap(side, "0")}, {"feature": LinearDecoder()}, weighting=make_weighting(weighting)
    )
    optimiser = torch.optim.LBFGS(
        aligner.parameters(),
        max_iter=400,
        history_size=30,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    decoder_time = process.decoder_time(time).expand(200)

    def loss() -> Tensor:
        optimiser.zero_grad()
        side(feature)
        terms = aligner(target[:, :, None, None], prior[:, :, None, None], decoder_time)
        terms.loss.backward()
        return terms.loss

    optimiser.step(loss)
    fresh_x, fresh_c, _ = observed(world, process, time, 30)
    decoded = aligner.decoders["feature"](torch.cat([fresh_x, fresh_c], dim=1)[:, :, None, None], None, (1, 1), None)
    factor = process.residual_factor(time).double()
    expected = (
        process.denoised_factor(time).double() * world.x0_gap(process, time, fresh_x, fresh_c)
        if torch.isinf(factor)
        else factor * world.score(process, time, fresh_x, fresh_c)
    )
    torch.testing.assert_close(decoded[:, :, 0, 0], expected, rtol=1e-3, atol=1e-4)
