"""The aligner in a training: read, switched off, removed, misused, wrapped, and learning."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lisa.common.errors import LisaError
from lisa.core import LearningMeter, attach
from toy_aligner import NAMES, attached, batch


def test_held_out_passes_read_r2_and_teach_nothing(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side, weighting="normalised")
    side.eval()
    with torch.no_grad(), aligner.observing():
        side(x)
        terms = aligner(target, prior, t)
    assert torch.isfinite(terms.r2)
    assert not terms.loss.requires_grad
    assert not aligner.weighting.count.any()
    with pytest.raises(LisaError, match="read already"):
        aligner(target, prior, t)


def test_weight_zero_at_attach_builds_nothing_and_hooks_nothing(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attach(side, "down.1", out_channels=4, names=NAMES, weight=0)
    assert not list(aligner.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.modules())
    side(x)
    terms = aligner(target, None, t)
    assert terms.loss.item() == 0
    assert math.isnan(terms.r2)
    assert terms.decoded == {}
    assert torch.equal(aligner(target, prior, t).residual, target - prior)
    (F.mse_loss(x.requires_grad_(), target) + terms.loss).backward()
    with pytest.raises(LisaError, match=r"cannot become 0\.1"):
        aligner.weight = 0.1


def test_weight_can_be_set_to_zero_and_back(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side)
    side(x)
    aligner.weight = 0
    assert aligner(target, None, t).loss.item() == 0
    side(x)
    assert not any(tap.waiting for tap in aligner._taps.values()), "at rest it keeps the feature's graph alive"
    with torch.no_grad(), aligner.observing():
        side(x)
        assert torch.isfinite(aligner(target, prior, t).r2), "held-out readings go on at weight 0"
    aligner.weight = 0.7
    with pytest.raises(LisaError, match=r"weight is 0|no feature"):
        aligner(target, prior, t)
    side(x)
    terms = aligner(target, prior, t)
    torch.testing.assert_close(terms.loss, 0.7 * terms.alignment)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(LisaError, match="alignment weight"):
            aligner.weight = wrong


def test_remove_ends_it_and_leaves_the_side_network_alone(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side, ["down.0", "down.1"])
    side(x)
    aligner.remove()
    aligner.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.modules())
    with pytest.raises(LisaError, match="has been removed"):
        aligner(target, prior, t)


def test_two_aligners_live_side_by_side(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    first, second = attached(side, "down.0"), attached(side, "down.1")
    side(x)
    first(target, prior, t)
    first.remove()
    second(target, prior, t)


def test_misuse_is_said(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side)
    with pytest.raises(LisaError, match="has not run since"):
        aligner(target, prior, t)
    for arguments, message in [
        ((target, None, t), "needs the prior"),
        ((target, prior[:2], t), "different shapes"),
        ((target, prior, t[:2]), "timesteps"),
        ((target[:2], prior[:2], t[:2]), "of 3 samples, the target of 2"),
        ((target[:, :3], prior[:, :3], t), "out_channels"),
        ((target[..., :3], prior[..., :3], t), "stride"),
    ]:
        side(x)
        with pytest.raises(LisaError, match=message):
            aligner(*arguments)
    side(x)
    with pytest.raises(LisaError, match="sample_weight"):
        aligner(target, prior, t, sample_weight=torch.ones(2))


class NoSync(TorchDispatchMode):
    """Fails on everything that would make a GPU wait for the host to look at a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(
            name in str(function) for name in ("local_scalar_dense", "nonzero", "unique", "equal", "_to_cpu")
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighting", ["plain", "normalised", "min-snr"])
def test_a_step_never_synchronises_the_device(make_side, weighting) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side, ["down.0", "down.1"], weighting=weighting, snr=lambda t: 1 / (1 + t.float()))
    meter = LearningMeter()
    with NoSync():
        side(x)
        terms = aligner(target, prior, t, sample_weight=torch.ones(3))
        meter.update(target, prior, prior, t, terms=terms)
        terms.loss.backward()
    with NoSync(), pytest.raises(AssertionError):
        terms.loss.item()


def test_it_can_be_wrapped_by_ddp(make_side, tmp_path) -> None:
    x, target, prior, t = batch()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        side = make_side()
        wrapped_side = nn.parallel.DistributedDataParallel(side)
        aligner = attach(wrapped_side, "down.1", out_channels=4, names=NAMES, stride=2)
        wrapped = nn.parallel.DistributedDataParallel(aligner, find_unused_parameters=True)
        outputs = wrapped_side(x)
        terms = wrapped(target, prior, t)
        (terms.loss + sum(out.mean() for out in outputs)).backward()
        assert aligner.decoders["down_1"].out.bias.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


def test_training_with_it_finds_the_score(make_side) -> None:
    """The residual is a function of x here, so the decoder must come to explain most of it."""
    generator = torch.Generator().manual_seed(0)
    side = make_side()
    aligner = attach(side, "down.0", out_channels=4, names=NAMES, stride=1)
    optimiser = torch.optim.Adam([*side.parameters(), *aligner.parameters()], 3e-3)
    for _ in range(150):
        x = torch.randn(8, 4, 8, 8, generator=generator)
        side(x)
        terms = aligner(torch.zeros_like(x), x.flip(1), torch.full((8,), 300))
        terms.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert terms.r2 > 0.8


def test_a_decoder_may_read_the_noisy_latent_and_the_prior(make_side) -> None:
    """Both reach it, in that order; without them it reads the feature alone."""
    side = make_side()
    aligner = attached(side, x_t_channels=4, reads_prior=True).eval()
    x, target, prior, t = batch()
    seen = []
    aligner.decoders["down_1"].join.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -8:]))

    def decoded(x_t, prior):
        with torch.no_grad(), aligner.observing():
            side(x)
            return aligner(target, prior, t, x_t=x_t).decoded["down.1"]

    one = decoded(x, prior)
    assert torch.equal(seen[0], torch.cat([x, prior], dim=1))
    assert not torch.equal(one, decoded(x, prior + 1)) and not torch.equal(one, decoded(x + 1, prior))
    with torch.no_grad(), aligner.observing(), pytest.raises(LisaError, match="needs x_t of shape"):
        side(x)
        aligner(target, prior, t)
    with pytest.raises(LisaError, match="reads_prior without x_t_channels"):
        attached(make_side(), reads_prior=True)
