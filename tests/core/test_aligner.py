"""The aligner's loss: the reference's, its terms, and types."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lisa.common.errors import LisaError
from lisa.core import attach, likelihood_residual
from toy_aligner import NAMES, attached, batch


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


def test_the_residual_is_in_fp32_and_checked() -> None:
    target, prior = torch.randn(2, 4, 3, 3).half(), torch.randn(2, 4, 3, 3).bfloat16()
    residual = likelihood_residual(target, prior)
    assert residual.dtype == torch.float32
    assert torch.equal(residual, target.float() - prior.float())
    assert torch.equal(likelihood_residual(target, prior.half()), target.float() - prior.half().float())
    assert likelihood_residual(target.double(), prior).dtype == torch.float64
    with pytest.raises(LisaError, match=r"\(2, 4, 3, 3\) and prior \(2, 4, 3\)"):
        likelihood_residual(target, prior[..., 0])
