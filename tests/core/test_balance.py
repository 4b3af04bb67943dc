"""The alignment's gradient is brought to a known ratio of the main loss's, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lisa.common.errors import LisaError
from lisa.core import attach
from lisa.core.balance import GradientBalance

GENERATOR = torch.Generator().manual_seed(0)
FEATURE = torch.randn(4, 8, generator=GENERATOR)


def backward(balance, *, main, alignment, scale):
    """One step: gradients at the feature of the norms ``main`` and ``scale * alignment``; the sum that arrives."""
    feature = FEATURE.clone().requires_grad_()
    inner = feature * 1.0
    one, two = torch.zeros(4, 8), torch.zeros(4, 8)
    one[0, 0], two[1, 1] = main, alignment
    loss = (inner * one).sum() + scale * (balance.watch(inner, scale) * two).sum()
    loss.backward()
    return feature.grad


def test_the_factor_is_the_ratio_of_the_gradients():
    balance = GradientBalance()
    assert float(balance.factor()) == 1, "nothing is known yet"
    for scale in (0.2, 3.0, 0.01):
        gradient = backward(balance, main=6.0, alignment=0.5, scale=torch.tensor(scale))
        assert float(balance.factor()) == pytest.approx(12, rel=1e-4), "whatever the weight was"
        assert gradient[0, 0] == 6 and float(gradient[1, 1]) == pytest.approx(0.5 * scale), "gradients pass unchanged"


def test_it_follows_and_is_bounded():
    balance = GradientBalance()
    for main in (1.0, 3.0):
        backward(balance, main=main, alignment=1.0, scale=1.0)
    assert float(balance.factor()) == pytest.approx(2), "the mean of the first steps"
    for _ in range(200):
        backward(balance, main=5.0, alignment=1.0, scale=1.0)
    assert float(balance.factor()) == pytest.approx(5, rel=1e-3)
    for _ in range(300):
        backward(balance, main=1e6, alignment=1.0, scale=1.0)
    assert float(balance.factor()) == GradientBalance.LIMIT


@pytest.mark.parametrize(("main", "alignment"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_steps_that_say_nothing_are_left_out(main, alignment):
    balance = GradientBalance()
    backward(balance, main=2.0, alignment=1.0, scale=1.0)
    backward(balance, main=main, alignment=alignment, scale=1.0)
    assert float(balance.factor()) == 2


def test_nothing_is_measured_without_gradients_or_outside_training():
    balance = GradientBalance()
    with torch.no_grad():
        assert balance.watch(FEATURE, 1.0) is FEATURE
    feature = FEATURE.clone().requires_grad_()
    assert balance.eval().watch(feature, 1.0) is feature


def test_several_layers_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    with pytest.raises(LisaError, match="balanced with 2 layers"):
        attach(network, ["1", "2"], out_channels=4, stride=1, balanced=True)


def test_an_aligner_with_it_pulls_at_the_feature_as_hard_as_told():
    """At the tapped feature: |gradient of the alignment| = weight * |gradient of the main loss|."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    aligner = attach(network, "1", out_channels=4, stride=1, weight=0.5, balanced=True)
    nn.init.normal_(aligner.decoders["1"].out.weight)
    x, target, prior = (torch.randn(2, channels, 6, 6) for channels in (3, 4, 4))
    caught = []
    network[0].register_forward_hook(lambda *args: caught.append(args[2]))
    for _ in range(2):  # the second step knows the norms of the first, at the same weights
        caught.clear()
        main = (network(x) - target).square().mean()
        terms = aligner(target, prior, torch.tensor(500.0))
        parts = [torch.autograd.grad(loss, caught[0], retain_graph=True)[0] for loss in (main, terms.loss)]
        (main + terms.loss).backward()
    assert float(parts[1].norm() / parts[0].norm()) == pytest.approx(0.5, rel=1e-3)
    saved = aligner.state_dict()
    assert float(saved["balances.1.main"]) > 0, "checkpoints hold the norms"
    assert float(terms.alignment) != pytest.approx(float(terms.loss.detach()) / 0.5), "the log has the error as it is"
