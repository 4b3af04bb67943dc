import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lisa.common.errors import LisaError
from lisa.core import FeatureTap

CHECKPOINTING = [None, "non-reentrant", "reentrant"]
X = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))


def early(side: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    return torch.tanh(side.conv_in(x))


def test_catches_the_input_with_its_graph(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0")
    assert not tap.waiting
    side(X)
    assert tap.waiting
    feature = tap.read()
    torch.testing.assert_close(feature, early(side))
    feature.square().mean().backward()
    assert side.conv_in.weight.grad.abs().sum() > 0
    assert side.down.weight.grad is None


def test_catches_the_output(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0", tap="output")
    outputs = side(X)
    assert tap.read() is outputs[0]


def test_catches_a_keyword_input_and_a_tensor_inside_an_output() -> None:
    class Named(nn.Module):
        def forward(self, *, scale: float, hidden_states: torch.Tensor) -> dict:
            return {"number": 1, "states": (None, [hidden_states * scale])}

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.named = Named()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.named(scale=2.0, hidden_states=x)["states"][1][0]

    root = Root()
    taps = FeatureTap(root, "named"), FeatureTap(root, "named", tap="output")
    out = root(X)
    assert taps[0].read() is X
    assert taps[1].read() is out


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_checkpointing_next_to_the_tap_changes_nothing(make_side, checkpointing) -> None:
    grads = []
    for mode in (None, checkpointing):
        side = make_side(mode)
        tap = FeatureTap(side, "zeros.1")
        out = side(X)
        (tap.read().square().mean() + sum(o.mean() for o in out)).backward()
        assert not tap.waiting, "the recomputation in backward was caught"
        grads.append([p.grad for p in side.parameters() if p.grad is not None])
    for plain, checked in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checked)


@pytest.mark.parametrize("tap_at", ["input", "output"])
def test_inside_a_non_reentrant_checkpoint_only_the_forward_counts(make_side, tap_at) -> None:
    grads = []
    for mode in (None, "non-reentrant"):
        side = make_side(mode)
        fired = []
        side.block.inner.register_forward_hook(lambda *_, fired=fired: fired.append(1))
        tap = FeatureTap(side, "block.inner", tap=tap_at)
        out = side(X)
        (tap.read().square().mean() + out[1].square().mean()).backward()
        assert len(fired) == (2 if mode else 1), "the premise: the checkpointed module runs twice"
        assert not tap.waiting
        grads.append([p.grad for p in side.parameters() if p.grad is not None])
    for plain, checked in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checked)


def test_inside_a_reentrant_checkpoint_there_is_no_graph_and_that_is_said(make_side) -> None:
    side = make_side("reentrant")
    tap = FeatureTap(side, "block.inner")
    out = side(X)
    with pytest.raises(LisaError, match="use_reentrant=False"):
        tap.read()
    out[1].mean().backward()
    assert not tap.waiting


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_whole_network_recomputed_inside_backward_does_not_count(make_side, reentrant) -> None:
    side = make_side()
    runs = []
    side.register_forward_pre_hook(lambda *_: runs.append(1))
    tap = FeatureTap(side, "zeros.1")
    x = X.clone().requires_grad_()
    out = checkpoint(lambda x: side(x)[1], x, use_reentrant=reentrant)
    if reentrant:
        assert not tap.waiting  # it ran without gradients
    else:
        tap.read()
    out.mean().backward()
    assert len(runs) == 2, "the premise: the network was recomputed"
    assert not tap.waiting


def test_a_recomputation_does_not_replace_a_feature_that_waits(make_side) -> None:
    side = make_side("non-reentrant")
    tap = FeatureTap(side, "block.inner")
    first = side(X)
    tap.read()
    side(2 * X)
    first[1].mean().backward()
    torch.testing.assert_close(tap.read(), torch.tanh(side.block.first(torch.tanh(side.down(early(side, 2 * X))))))


def test_eval_and_no_grad_passes_are_neither_caught_nor_in_the_way(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0")
    with torch.no_grad():
        side(X)
    with pytest.raises(LisaError, match="without gradients"):
        tap.read()
    side.eval()(X)
    with pytest.raises(LisaError, match="in eval mode"):
        tap.read()
    side.train()(X)
    side.eval()(2 * X)
    side.train()
    with torch.no_grad():
        side(3 * X)
    with torch.inference_mode():
        side(3 * X)
    torch.testing.assert_close(tap.read(), early(side))


def test_observing_catches_any_pass_and_only_while_it_lasts(make_side) -> None:
    side = make_side().eval()
    tap = FeatureTap(side, "zeros.0")
    tap.enabled = False
    with torch.no_grad():
        with tap.observing():
            side(X)
        side(2 * X)
        feature = tap.read()
        torch.testing.assert_close(feature, early(side))
        assert not feature.requires_grad
        side(X)
        assert not tap.waiting


def test_reading_twice_or_before_anything_is_an_error_that_says_what_to_do(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0", name="down.0")
    with pytest.raises(LisaError, match=r"'down\.0'.*has not run.*train mode.*observing"):
        tap.read()
    side(X)
    tap.read()
    with pytest.raises(LisaError, match="read already"):
        tap.read()


def test_a_layer_that_did_not_run_is_said(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "drop")
    side(X)
    with pytest.raises(LisaError, match="this layer did not"):
        tap.read()


def test_only_the_first_firing_of_a_forward_counts_and_a_new_forward_replaces() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    root = Twice()
    tap = FeatureTap(root, "layer")
    root(X)
    root(5 * X)
    root.layer(7 * X)  # outside the root's forward
    torch.testing.assert_close(tap.read(), 5 * X)


def test_a_forward_that_fails_does_not_leave_the_tap_armed(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.1")
    handle = side.down.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        side(X)
    handle.remove()
    side.zeros[1](torch.zeros(1, 16, 2, 2))
    assert not tap.waiting


def hooks_of(network: nn.Module) -> dict:
    return {
        (name, attribute): dict(value)
        for name, module in network.named_modules()
        for attribute, value in vars(module).items()
        if "hooks" in attribute and isinstance(value, dict)
    }


@pytest.mark.parametrize("tap_at", ["input", "output"])
def test_remove_restores_exactly(make_side, tap_at) -> None:
    side = make_side()
    side.register_forward_pre_hook(lambda *_: None)
    side.zeros[1].register_forward_hook(lambda *_, **__: None, with_kwargs=True)
    before, state = hooks_of(side), {k: v.clone() for k, v in side.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in side.named_modules()}
    tap = FeatureTap(side, "zeros.1", tap=tap_at)
    assert hooks_of(side) != before
    side(X)
    tap.remove()
    assert hooks_of(side) == before
    assert {name: set(vars(module)) for name, module in side.named_modules()} == attributes
    assert all(torch.equal(state[k], v) for k, v in side.state_dict().items() if "running" not in k)
    assert not tap.waiting
    tap.remove()
    side(X)
    with pytest.raises(LisaError, match="removed"):
        tap.read()


def test_a_deep_copy_of_the_side_network_is_free_of_the_tap(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0")
    side(X)
    twin = copy.deepcopy(side)  # an EMA, while a feature with a graph waits
    twin(2 * X)
    assert all(p is not q for p, q in zip(side.parameters(), twin.parameters(), strict=True))
    torch.testing.assert_close(tap.read(), early(side))


def test_a_feature_that_was_read_is_let_go(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0")
    side(X)
    reference = weakref.ref(tap.read())
    gc.collect()
    assert reference() is None
    side(X)
    tap.enabled = False
    assert not tap.waiting


def test_an_unknown_tap_is_an_error(make_side) -> None:
    with pytest.raises(LisaError, match="unknown tap 'outptu'"):
        FeatureTap(make_side(), "zeros.0", tap="outptu")


def test_under_compilation_hooks_that_were_there_first_still_catch(make_side) -> None:
    side = make_side()
    tap = FeatureTap(side, "zeros.0")
    compiled = torch.compile(side, backend="eager")
    for factor in (1, 2):
        compiled(factor * X)
        torch.testing.assert_close(tap.read(), early(side, factor * X))
