"""Control by hooks gives the bits of the arguments, on the UNet that has them; and leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from lisa.common.errors import LisaError
from lisa.core.injecting import injected


@pytest.fixture(scope="module")
def unet():
    return tiny.make_unet(levels=2).requires_grad_(False).eval()


def inputs_and_residuals(unet, size):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    half = tuple(-(-side // 2) for side in size)
    shapes = [(16, *size)] * 3 + [(16, *half)] * 3
    given = (normal(2, 4, *size), torch.tensor([3, 800]), normal(2, tiny.WORDS, tiny.TEXT_WIDTH))
    return given, [normal(2, *shape).requires_grad_() for shape in shapes], normal(2, 16, *half).requires_grad_()


def run(unet, given, down, mid, native):
    """The prediction, and the gradients of all residuals."""
    for each in (*down, mid):
        each.grad = None
    if native:
        arguments = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        output = unet(*given, **arguments).sample
    else:
        with injected(unet, down, mid):
            output = unet(*given).sample
    output.square().sum().backward()
    return [output.detach(), *[each.grad.clone() for each in (*down, mid)]]


@pytest.mark.parametrize(
    ("size", "change"),
    [((8, 8), "plain"), ((9, 7), "plain"), ((6, 10), "checkpointed"), ((8, 8), "compiled blocks")],
)
def test_the_bits_of_the_arguments(unet, size, change):
    given, down, mid = inputs_and_residuals(unet, size)
    changed = copy.deepcopy(unet)
    if change == "checkpointed":
        changed.enable_gradient_checkpointing()
    theirs = run(changed, given, down, mid, native=True)
    if change == "compiled blocks":  # by a backend that computes the same
        for block in changed.up_blocks:
            block.compile(backend="eager")
    ours = run(changed, given, down, mid, native=False)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(bool(gradient.any()) for gradient in ours[1:])
    with torch.no_grad():
        assert not torch.allclose(unet(*given).sample, ours[0], atol=1e-2), "the residuals do something"


def test_nothing_stays_behind(unet):
    given, down, mid = inputs_and_residuals(unet, (8, 8))
    before = unet(*given).sample
    with pytest.raises(RuntimeError), injected(unet, down, mid.new_zeros(3)):
        unet(*given)
    assert tiny.traces(unet) == {} and torch.equal(unet(*given).sample, before)


def test_what_would_be_ignored_or_misplaced_is_refused(unet):
    _, down, mid = inputs_and_residuals(unet, (8, 8))
    with (
        pytest.raises(LisaError, match=r"5 residuals for the 6 skip connections of a UNet2DConditionModel"),
        injected(unet, down[1:], mid),
    ):
        pass
    compiled = copy.deepcopy(unet)
    compiled.compile(backend="eager")
    with pytest.raises(LisaError, match="compiled as a whole"), injected(compiled, down, mid):
        pass
