"""Control by hooks gives the bits of the arguments, on the UNet that has them; and leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from conformance import tiny_svd
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


def test_every_residual_arrives_once_in_a_unet_over_space_and_time():
    """It takes no residuals as arguments: what its up blocks are given, with and without."""
    unet, generator = tiny_svd.make_unet().eval(), torch.Generator().manual_seed(0)
    clip, frame = torch.randn(2, 3, 8, 8, 8, generator=generator), torch.randn(2, 1, 32, generator=generator)
    given = (clip, torch.tensor([0.5, 1.0]), frame, torch.tensor([[7.0, 127.0, 0.02]] * 2))

    def entered():
        """Skip connections in the order of the down blocks, and what comes from the middle block."""
        seen = []
        keep = lambda _block, _args, kwargs: seen.append(kwargs)  # noqa: E731
        hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in unet.up_blocks]
        with torch.no_grad():
            unet(*given)
        for hook in hooks:
            hook.remove()
        return [state for each in reversed(seen) for state in each["res_hidden_states_tuple"]], seen[0]["hidden_states"]

    skips, middle = entered()
    assert len(skips) == 6
    values = torch.arange(1.0, 8.0).tolist()
    down = [torch.full_like(state, value) for state, value in zip(skips, values[:-1], strict=True)]
    with injected(unet, down, torch.full_like(middle, values[-1])):
        with_control = entered()
    for value, before, after in zip(values, [*skips, middle], [*with_control[0], with_control[1]], strict=True):
        torch.testing.assert_close(after - before, torch.full_like(before, value))


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
