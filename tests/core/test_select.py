"""Features that hold more than the image's tokens: what is cut out of them is what the decoder sees."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core import FeatureTap, attach


class MixedTokens(nn.Module):
    """A latent (B, 4, H, W) as tokens of 2x2 cells, then padding and text, in one sequence."""

    def __init__(self, others: int = 7) -> None:
        super().__init__()
        self.others = others
        self.patch, self.zero = nn.Conv2d(4, 12, 2, 2), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        image = self.patch(x).flatten(2).transpose(1, 2)
        return self.zero(torch.cat([image, 100 + torch.zeros(len(x), self.others, 12)], dim=1))


def image_first(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature[:, : size[0] * size[1] // 4]


X = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))


def attached(side: nn.Module, **options):
    def dry_run() -> tuple[int, int]:
        side(torch.zeros(1, 4, 4, 8))
        return 4, 8

    return attach(side, "zero", out_channels=4, dry_run=dry_run, **options)


def test_the_decoder_sees_the_image_only() -> None:
    torch.manual_seed(0)
    side = MixedTokens()
    aligner = attached(side, select=image_first)
    (decoder,) = aligner.decoders.values()
    assert (decoder.in_channels, decoder.upsamples) == (12, 1)  # the stride was measured on the cut feature
    nn.init.ones_(decoder.out.weight)
    target, prior, t = torch.randn(X.shape), torch.randn(X.shape), torch.tensor([3, 700])
    side(X)
    terms = aligner(target, prior, t)
    expected = decoder(side.patch(X).flatten(2).transpose(1, 2), t, (6, 10))
    torch.testing.assert_close(terms.decoded["zero"], expected.detach())
    terms.loss.backward()
    assert side.patch.weight.grad.abs().sum() > 0


def test_gradients_are_balanced_where_the_decoder_reads() -> None:
    """Both meet at the whole feature; the norms are those of the part that is read."""
    torch.manual_seed(0)
    side = MixedTokens()
    aligner = attached(side, select=image_first, weight=0.5, balanced=True)
    nn.init.normal_(aligner.decoders["zero"].out.weight, std=0.05)  # its gradient is within the bounds of the factor
    target, prior = torch.randn(X.shape), torch.randn(X.shape)
    caught = []
    side.zero.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    for _ in range(2):  # the second step knows the norms of the first
        caught.clear()
        main = side(X).square().mean()
        terms = aligner(target, prior, torch.tensor(500.0))
        parts = [torch.autograd.grad(loss, caught[0], retain_graph=True)[0] for loss in (main, terms.loss)]
        (main + terms.loss).backward()
    assert float(aligner.state_dict()["balances.zero.count"]) == 2
    size = (X.shape[-2], X.shape[-1])
    ratio = image_first(parts[1], size).norm() / image_first(parts[0], size).norm()
    assert float(ratio) == pytest.approx(0.5, rel=1e-3)


def test_without_select_such_a_feature_is_refused() -> None:
    with pytest.raises(LisaError, match="15 tokens are not a latent of 4x8"):
        attached(MixedTokens())
    side = MixedTokens()
    aligner = attach(side, "zero", out_channels=4, stride=2)
    side(X)
    with pytest.raises(LisaError, match="22 tokens are not a latent of 6x10"):
        aligner(X, X, torch.tensor([1, 2]))


def test_a_tap_that_selects_wants_the_size() -> None:
    side = MixedTokens()
    tap = FeatureTap(side, "zero", select=image_first)
    side(X)
    with pytest.raises(LisaError, match=r"(?s)more than the image.*Pass size="):
        tap.read()
    assert torch.equal(tap.read((6, 10)), side.patch(X).flatten(2).transpose(1, 2))
    assert copy.deepcopy(tap).select is image_first
