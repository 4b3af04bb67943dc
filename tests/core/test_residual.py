import pytest
import torch

from lisa.common.errors import LisaError
from lisa.core import NoiseLevelWeighting, make_weighting, register_weighting, weighting_names
from lisa.core.residual import _WEIGHTINGS, noise_bins


def residuals(energies, t, seed=0) -> torch.Tensor:
    noise = torch.randn(len(t), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(energies).sqrt()[:, None, None, None]


def test_bins_split_0_to_1000_and_hold_its_ends() -> None:
    t = torch.tensor([0.0, 49.999, 50.0, 500.0, 999.0, 1000.0])
    bins = noise_bins(t, 20, torch.float32)
    assert bins.argmax(dim=1).tolist() == [0, 0, 1, 10, 19, 19]
    assert (bins.sum(dim=1) == 1).all()
    assert noise_bins(torch.tensor([999]), 20, torch.float32).argmax().item() == 19


def test_plain_weighs_every_level_the_same() -> None:
    weights = make_weighting("plain")(torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 1000]), True)
    assert torch.equal(weights, torch.ones(3))


def test_normalised_brings_every_level_to_unit_energy() -> None:
    weighting = make_weighting("normalised")
    t = torch.tensor([10.0, 480.0, 990.0])
    energies = [1e-3, 0.2, 40.0]
    for seed in range(30):
        residual = residuals(energies, t, seed)
        weights = weighting(residual, t, True)
    torch.testing.assert_close(weights, 1 / torch.tensor(energies), rtol=0.02, atol=0)
    assert set(weighting.state_dict()) == {"energy", "count"}


def test_normalised_starts_unbiased_then_follows() -> None:
    weighting = make_weighting("normalised")
    t = torch.tensor([10.0])
    first = torch.full((1, 1, 1, 1), 2.0)
    assert weighting(first, t, True).item() == pytest.approx(1 / 4)  # the very first estimate is the sample's own
    assert weighting(torch.zeros(1, 1, 1, 1), t, True).item() == pytest.approx(1 / 2)  # plain mean of 4 and 0
    for _ in range(50):
        weighting(torch.ones(100, 1, 1, 1), t.expand(100), True)
    assert weighting.energy[0].item() == pytest.approx(1.0, abs=0.01)


def test_normalised_learns_only_in_training_and_guesses_unseen_levels() -> None:
    weighting = make_weighting("normalised")
    t = torch.tensor([10.0, 990.0])
    residual = residuals([4.0, 9.0], t)
    assert torch.equal(weighting(residual, t, False), torch.ones(2))
    assert not weighting.count.any()
    weighting(residual[:1], t[:1], True)
    seen, unseen = weighting(residual, t, False)
    assert seen == unseen == 1 / weighting.energy[0]


def test_normalised_survives_a_broken_sample_and_a_perfect_prior() -> None:
    weighting = make_weighting("normalised")
    t = torch.tensor([10.0, 10.0, 990.0])
    residual = residuals([1.0, 1.0, 0.0], t)
    residual[0] = torch.nan
    weights = weighting(residual, t, True)
    assert torch.isfinite(weights).all()
    assert weighting.count[0] == 1
    assert weights[2] == 1e6


def test_normalised_is_the_same_in_one_batch_or_two() -> None:
    once, twice = make_weighting("normalised"), make_weighting("normalised")
    t = torch.arange(0, 1000, 25).float()
    residual = residuals([1.0 + i for i in range(40)], t)
    once(residual, t, True)
    twice(residual[::2], t[::2], True)
    twice(residual[1::2], t[1::2], True)
    torch.testing.assert_close(once.energy, twice.energy)


def test_min_snr_is_the_published_weight() -> None:
    snr = torch.tensor([0.0, 0.1, 5.0, 50.0, float("inf")])
    t = torch.arange(5)
    make = lambda prediction: make_weighting("min-snr", snr=lambda t: snr[t], prediction=prediction)(  # noqa: E731
        torch.zeros(5, 1), t, True
    )
    torch.testing.assert_close(make("epsilon"), torch.tensor([1.0, 1.0, 1.0, 0.1, 0.0]))
    torch.testing.assert_close(make("v_prediction"), torch.tensor([0.0, 0.1 / 1.1, 5 / 6, 5 / 51, 0.0]))
    # In flow 1 / (1 + sqrt(snr)) is t, and the square error of x_0 is t^2 times the velocity's.
    time = 1 / (1 + snr.sqrt())
    torch.testing.assert_close(make("flow"), snr.clamp(max=5) * time**2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow", "edm"])
def test_min_snr_is_the_same_x_0_weight_whatever_is_predicted(prediction) -> None:
    """A given error of x_0 must cost min(snr, 5) times its square in every parametrisation."""
    alpha, sigma = (torch.tensor(x, dtype=torch.float64) for x in ([0.6, 0.98, 0.1], [0.8, 0.19, 0.99]))
    if prediction == "flow":
        sigma = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
        alpha = 1 - sigma
    elif prediction == "edm":
        sigma, alpha = torch.tensor([0.1, 0.9, 30.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    else:
        alpha = (1 - sigma**2).sqrt()
    snr = (alpha / sigma) ** 2
    error_per_x0 = {
        "epsilon": alpha / sigma,
        "v_prediction": 1 / sigma,
        "flow": 1 / sigma,
        "edm": (1 + sigma**2).sqrt() / sigma,
    }[prediction]
    weights = make_weighting("min-snr", snr=lambda t: snr, prediction=prediction)(snr[:, None], torch.zeros(3), True)
    torch.testing.assert_close(weights * error_per_x0**2, snr.clamp(max=5))


def test_a_new_weighting_is_one_class_and_one_line() -> None:
    @register_weighting("late-only")
    class LateOnly(NoiseLevelWeighting):
        def forward(self, residual, timesteps, update):
            return (timesteps > 500).to(residual)

    try:
        assert "late-only" in weighting_names()
        assert make_weighting("late-only")(torch.zeros(2, 1), torch.tensor([1, 999]), True).tolist() == [0, 1]
    finally:
        del _WEIGHTINGS["late-only"]
    with pytest.raises(LisaError, match="unknown weighting 'late-only'"):
        make_weighting("late-only")
