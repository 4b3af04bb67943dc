import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lisa.common.errors import LisaError
from lisa.core import LearningMeter, LikelihoodAligner, attach, likelihood_residual

NAMES = {"down.0": "zeros.0", "down.1": "zeros.1"}


def batch(size=(8, 6), samples=3, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target, prior = (torch.randn(samples, 4, *size, generator=generator) for _ in range(3))
    return x, target, prior, torch.tensor([0, 481, 999][:samples])


def attached(side: nn.Module, layer="down.1", **options) -> LikelihoodAligner:
    """Attached, with a decoder whose output is not zero: with zeros most comparisons are vacuous."""
    options.setdefault("dry_run", lambda: (side(torch.zeros(1, 4, 8, 6)), (8, 6))[1])
    aligner = attach(side, layer, out_channels=4, names=NAMES, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for decoder in aligner.decoders.values():
            decoder.out.weight.copy_(torch.randn(decoder.out.weight.shape, generator=generator) * 0.1)
            decoder.out.bias.fill_(0.3)
    return aligner


def reference_loss(feature: Tensor, t: Tensor, target: Tensor, prior: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Method.md, steps 5 and 6, with the reference decoder at stride 2, written out; weight 0.2."""
    residual = target - prior
    angles = torch.stack([t * 10_000 ** (-k / 128) for k in range(128)], dim=1)
    embedded = (
        torch.cat([torch.cos(angles), torch.sin(angles)], dim=1) @ weights["time.weight"].T + weights["time.bias"]
    )
    h = feature + (embedded * torch.sigmoid(embedded)).reshape(*embedded.shape, 1, 1)
    h = F.conv2d(h, weights["stages.0.weight"], weights["stages.0.bias"], padding=1)
    h = h * torch.sigmoid(h)
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    score = F.conv2d(h, weights["out.weight"], weights["out.bias"], padding=1)
    return 0.2 * ((score - residual) ** 2).mean()


def test_loss_and_gradients_are_the_reference_to_1e_6(make_side) -> None:
    x, target, prior, t = batch()
    t = t.double()  # the embedding of 999 in fp32 is good to 1e-4 only
    side = make_side().double()
    aligner = attached(side, stride=2).double()
    side(x.double())
    loss = aligner(target.double(), prior.double(), t).loss
    ours = torch.autograd.grad(loss, [side.conv_in.weight, side.block.inner.bias, *aligner.parameters()])

    twin = make_side().double()
    caught = []
    twin.zeros[1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    twin(x.double())
    weights = {name: p.detach().requires_grad_() for name, p in aligner.decoders["down_1"].named_parameters()}
    expected_loss = reference_loss(caught[0], t, target.double(), prior.double(), weights)
    order = [weights[name] for name, _ in aligner.decoders["down_1"].named_parameters()]
    expected = torch.autograd.grad(expected_loss, [twin.conv_in.weight, twin.block.inner.bias, *order])

    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for a, b in zip(ours, expected, strict=True):
        assert b.abs().max() > 1e-5, "a gradient of zero compares nothing"
        torch.testing.assert_close(a, b, atol=1e-6 * float(b.abs().max()), rtol=1e-6)


def test_the_decoders_only_are_its_parameters_and_state(make_side) -> None:
    side = make_side()
    before = set(side.state_dict())
    aligner = attached(side)
    assert {name.split(".")[0] for name in aligner.state_dict()} == {"decoders"}
    assert {name for name, _ in aligner.named_parameters()} == set(aligner.state_dict())
    assert not {id(p) for p in aligner.parameters()} & {id(p) for p in side.parameters()}
    assert side not in list(aligner.modules())
    assert set(side.state_dict()) == before
    twin = attach(make_side(), "down.1", out_channels=4, names=NAMES, stride=2, weighting="normalised")
    with pytest.raises(RuntimeError, match=r"weighting\.energy"):
        twin.load_state_dict(aligner.state_dict())
    attach(make_side(), "down.1", out_channels=4, names=NAMES, stride=2).load_state_dict(aligner.state_dict())


def test_terms_are_what_they_are_named(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side, weight=0.5)
    side(x)
    terms = aligner(target=target, prior=prior, timesteps=t)
    decoded = terms.decoded["down.1"]
    residual = target - prior
    torch.testing.assert_close(terms.residual, residual)
    torch.testing.assert_close(terms.alignment, F.mse_loss(decoded, residual))
    torch.testing.assert_close(terms.loss, 0.5 * terms.alignment)
    torch.testing.assert_close(terms.squared_error, (decoded - residual).square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(terms.squared_residual, residual.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(terms.r2, 1 - (decoded - residual).square().sum() / residual.square().sum())
    torch.testing.assert_close(terms.by_layer["down.1"], terms.r2)
    tensors = [terms.alignment, terms.r2, decoded, terms.residual, terms.squared_error, *terms.by_layer.values()]
    assert terms.loss.requires_grad
    assert not any(each.requires_grad for each in tensors)


def test_neither_target_nor_prior_get_a_gradient(make_side) -> None:
    x, target, prior, t = batch()
    target.requires_grad_()
    prior.requires_grad_()
    side = make_side()
    aligner = attached(side)
    side(x)
    aligner(target, prior, t).loss.backward()
    assert target.grad is None
    assert prior.grad is None
    assert side.conv_in.weight.grad.abs().sum() > 0


def test_several_layers_are_averaged(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    both = attached(side, ["down.0", "block.inner"], stride=[1, 2])
    side(x)
    terms = both(target, prior, t)
    assert both.layers == tuple(terms.decoded) == tuple(terms.by_layer) == ("down.0", "block.inner")
    errors = [F.mse_loss(decoded, target - prior) for decoded in terms.decoded.values()]
    assert abs(errors[0] - errors[1]) > 1e-4
    torch.testing.assert_close(terms.loss, 0.2 * (errors[0] + errors[1]) / 2)
    torch.testing.assert_close(terms.r2, sum(terms.by_layer.values()) / 2)
    torch.testing.assert_close(terms.r2, 1 - terms.squared_error.sum() / terms.squared_residual.sum())


def test_sample_weight_scales_each_samples_loss_and_not_r2(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side()
    aligner = attached(side)
    side(x)
    plain = aligner(target, prior, t)
    side(x)
    masked = aligner(target, prior, t, sample_weight=torch.tensor([2.0, 0.0, 1.0]))
    each = plain.squared_error / target[0].numel()
    torch.testing.assert_close(masked.alignment, (2 * each[0] + each[2]) / 3)
    torch.testing.assert_close(masked.r2, plain.r2)


@pytest.mark.parametrize("size", [(8, 6), (9, 13), (18, 18), (5, 30)])
def test_sizes_may_change_between_steps(make_side, size) -> None:
    x, target, prior, t = batch(size)
    side = make_side()
    aligner = attached(side, ["down.0", "down.1"])
    side(x)
    terms = aligner(target, prior, t)
    assert all(decoded.shape == target.shape for decoded in terms.decoded.values())


@pytest.mark.parametrize("prior_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_all_but_the_side_network_is_fp32(make_side, prior_dtype) -> None:
    x, target, prior, t = batch()
    prior = prior.to(prior_dtype)
    side = make_side()
    aligner = attached(side)
    caught = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        side.zeros[1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        side(x)
        terms = aligner(target, prior, t)
    assert caught[0].dtype == torch.bfloat16
    assert terms.loss.dtype == terms.residual.dtype == terms.decoded["down.1"].dtype == torch.float32
    decoded = aligner.decoders["down_1"](caught[0].detach().float(), t, (8, 6))
    assert torch.equal(terms.decoded["down.1"], decoded.detach())
    torch.testing.assert_close(terms.alignment, F.mse_loss(decoded, target - prior.float()).detach())
    terms.loss.backward()
    assert side.conv_in.weight.grad.abs().sum() > 0


def test_a_side_network_in_half_precision_is_aligned_too(make_side) -> None:
    x, target, prior, t = batch()
    side = make_side().to(torch.bfloat16)
    aligner = attached(side, stride=2)
    assert {p.dtype for p in aligner.parameters()} == {torch.float32}
    side(x.to(torch.bfloat16))
    aligner(target.to(torch.bfloat16), prior.to(torch.bfloat16), t).loss.backward()
    assert side.conv_in.weight.grad.abs().sum() > 0


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


def test_the_residual_is_in_fp32_and_checked() -> None:
    target, prior = torch.randn(2, 4, 3, 3).half(), torch.randn(2, 4, 3, 3).bfloat16()
    residual = likelihood_residual(target, prior)
    assert residual.dtype == torch.float32
    assert torch.equal(residual, target.float() - prior.float())
    assert torch.equal(likelihood_residual(target, prior.half()), target.float() - prior.half().float())
    assert likelihood_residual(target.double(), prior).dtype == torch.float64
    with pytest.raises(LisaError, match=r"\(2, 4, 3, 3\) and prior \(2, 4, 3\)"):
        likelihood_residual(target, prior[..., 0])
