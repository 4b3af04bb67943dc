import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lisa.common.errors import LisaError
from lisa.core import LikelihoodDecoder, to_map


def randomised(decoder: LikelihoodDecoder, seed: int = 0) -> LikelihoodDecoder:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return decoder


def reference(decoder: LikelihoodDecoder, f: Tensor, t: Tensor, doublings: int) -> Tensor:
    """Method.md's decoder with plain doubling, written out again; convolutions take the given weights in order."""
    weights = dict(decoder.named_parameters())
    angles = t.float()[:, None] * torch.tensor([10_000 ** (-k / 128) for k in range(128)])
    embedded = F.linear(torch.cat([angles.cos(), angles.sin()], 1), weights["time.weight"], weights["time.bias"])
    h = f + F.silu(embedded)[..., None, None]
    for k in range(max(doublings, 1)):
        weight = weights[f"stages.{k}.weight"]
        h = F.silu(F.conv2d(h, weight, weights[f"stages.{k}.bias"], padding=weight.shape[-1] // 2))
        if doublings:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(h, weights["out.weight"], weights["out.bias"], padding=1)


@pytest.mark.parametrize(
    ("channels", "doublings", "widths", "kernels"),
    [
        (320, 0, [320], [3]),
        (320, 1, [160], [3]),
        (640, 1, [320], [1]),
        (640, 2, [320, 160], [1, 3]),
        (1280, 3, [640, 320, 160], [1, 3, 3]),
        (96, 3, [64, 64, 64], [3, 3, 3]),
    ],
)
def test_it_is_the_reference_decoder(channels, doublings, widths, kernels) -> None:
    decoder = randomised(LikelihoodDecoder(channels, 4, doublings))
    assert [stage.out_channels for stage in decoder.stages] == widths
    assert [stage.kernel_size[0] for stage in decoder.stages] == kernels
    feature, t = torch.randn(2, channels, 2, 3), torch.tensor([0, 913])
    size = (2 * 2**doublings, 3 * 2**doublings)
    torch.testing.assert_close(
        decoder(feature, t, size), reference(decoder, feature, t, doublings), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "stride"),
    [((18, 18), 4), ((18, 10), 4), ((17, 31), 8), ((15, 9), 2), ((30, 30), 8), ((7, 5), 1), ((1, 3), 2), ((64, 96), 8)],
)
@pytest.mark.parametrize("rounding", ["up", "down"])
def test_any_size_comes_out_exactly(size, stride, rounding) -> None:
    h, w = (max(-(-s // stride) if rounding == "up" else s // stride, 1) for s in size)
    decoder = randomised(LikelihoodDecoder(8, 5, int(math.log2(stride))))
    feature = torch.randn(2, 8, h, w, requires_grad=True)
    decoded = decoder(feature, torch.tensor([1, 2]), size)
    assert decoded.shape == (2, 5, *size)
    decoded.square().sum().backward()
    assert (feature.grad.abs().sum(dim=1) > 0).all(), "a part of the feature is not looked at"


@pytest.mark.parametrize(
    ("feature", "expected"), [((5, 3), [(9, 5), (18, 10)]), ((3, 2), [(5, 3), (9, 6), (17, 11)]), ((4, 4), [(7, 8)])]
)
def test_intermediate_sizes_are_the_networks_own(monkeypatch, feature, expected) -> None:
    sizes = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: sizes.append(k["size"]) or interpolate(*a, **k))
    LikelihoodDecoder(8, 4, len(expected))(torch.randn(1, 8, *feature), torch.tensor([1]), expected[-1])
    assert sizes == expected


def test_an_odd_size_is_the_corner_of_the_even_one() -> None:
    """Away from the far border, 5 -> 9 -> 18 must place pixels as 5 -> 10 -> 20 does."""
    decoder = randomised(LikelihoodDecoder(8, 4, 2))
    feature, t = torch.randn(1, 8, 5, 5), torch.tensor([400])
    odd, even = decoder(feature, t, (18, 18)), decoder(feature, t, (20, 20))
    torch.testing.assert_close(odd[..., :14, :14], even[..., :14, :14])


def test_it_starts_at_zero_and_still_learns() -> None:
    decoder = LikelihoodDecoder(16, 4, 1)
    feature = torch.randn(2, 16, 4, 4)
    decoded = decoder(feature, torch.tensor([5, 6]), (8, 8))
    assert not decoded.any()
    (decoded - 1).square().mean().backward()
    assert decoder.out.weight.grad.abs().sum() > 0


def test_time_matters_and_may_be_fractional() -> None:
    decoder = randomised(LikelihoodDecoder(16, 4, 0))
    feature = torch.randn(1, 16, 4, 4).expand(3, -1, -1, -1)
    a, b, c = decoder(feature, torch.tensor([10.0, 10.5, 900.0]), (4, 4))
    assert (a - c).abs().max() > (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_features_are_decoded_in_fp32(dtype, autocast) -> None:
    decoder = randomised(LikelihoodDecoder(16, 4, 1))
    feature, t = torch.randn(2, 16, 4, 4).to(dtype).requires_grad_(), torch.tensor([3, 700])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        decoded = decoder(feature, t, (8, 8))
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decoder(feature.detach().float(), t, (8, 8)))
    decoded.square().mean().backward()
    assert feature.grad.dtype == dtype
    assert feature.grad.abs().sum() > 0


@pytest.mark.parametrize(("size", "patch"), [((8, 12), 2), ((6, 10), 1), ((16, 8), 4)])
def test_tokens_are_a_map_in_row_major_order(size, patch) -> None:
    feature = torch.randn(2, 16, size[0] // patch, size[1] // patch)
    tokens = feature.flatten(2).transpose(1, 2)
    assert torch.equal(to_map(tokens, size), feature)
    decoder = randomised(LikelihoodDecoder(16, 4, int(math.log2(patch))))
    t = torch.tensor([3, 4])
    assert torch.equal(decoder(tokens, t, size), decoder(feature, t, size))


@pytest.mark.parametrize(("tokens", "size"), [(24 + 3, (8, 12)), (24, (8, 13)), (0, (8, 8)), (100, (8, 8))])
def test_tokens_that_are_no_grid_are_an_error(tokens, size) -> None:
    with pytest.raises(LisaError, match=f"{tokens} tokens"):
        to_map(torch.zeros(1, tokens, 4), size)


def test_x_t_is_read_where_asked_for() -> None:
    decoder = randomised(LikelihoodDecoder(16, 4, 1, x_t_channels=4))
    feature, t, x_t = torch.randn(2, 16, 4, 4), torch.tensor([3, 4]), torch.randn(2, 4, 8, 8)
    assert not torch.allclose(decoder(feature, t, (8, 8), x_t), decoder(feature, t, (8, 8), 2 * x_t))
    for wrong in (None, x_t[:, :3], x_t[..., :7]):
        with pytest.raises(LisaError, match="needs x_t"):
            decoder(feature, t, (8, 8), wrong)
    assert len(list(LikelihoodDecoder(16, 4, 1).parameters())) == len(list(decoder.parameters())) - 2


@pytest.mark.parametrize(
    ("feature", "timesteps", "size", "message"),
    [
        (torch.zeros(2, 15, 4, 4), torch.zeros(2), (8, 8), "15 channels"),
        (torch.zeros(2, 16, 4, 4), torch.zeros(3), (8, 8), "timesteps"),
        (torch.zeros(2, 16, 4, 4), torch.zeros(2), (16, 16), "stride 2"),
        (torch.zeros(2, 16, 4, 4), torch.zeros(2), (8, 11), "stride 2"),
        (torch.zeros(16, 4, 4, 4, 4), torch.zeros(16), (8, 8), "neither a map"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(feature, timesteps, size, message) -> None:
    with pytest.raises(LisaError, match=message):
        LikelihoodDecoder(16, 4, 1)(feature, timesteps, size)


@pytest.mark.parametrize("arguments", [(0, 4, 1), (8, 0, 1), (8, 4, -1)])
def test_impossible_decoders_are_errors(arguments) -> None:
    with pytest.raises(LisaError, match="cannot be made"):
        LikelihoodDecoder(*arguments)
