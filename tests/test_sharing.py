"""Sharing: what is computed once must equal what two separate passes give, bit for bit."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import lisa
import tiny
from lisa.common.errors import LisaError
from lisa.sharing import SharedPrefix

SIZES = [(32, 32), (30, 30), (18, 18), (12, 22)]


def step(pair, height, width, *, checkpointing=False, autocast=False, layer="down.5"):
    """One training step: prediction, and gradients of side network and decoder by name."""
    if checkpointing:
        pair.side.module.enable_gradient_checkpointing()
        pair.main.network.enable_gradient_checkpointing()
    else:
        pair.side.module.disable_gradient_checkpointing()
        pair.main.network.disable_gradient_checkpointing()
    pair.side.module.zero_grad()
    torch.manual_seed(5)
    aligner = lisa.attach(pair.side.module, layer, out_channels=4)
    for parameter in aligner.parameters():  # the decoder's way out starts at zero, and would let no gradient through
        nn.init.normal_(parameter, std=0.05)
    inputs, target = tiny.make_inputs(pair.main, height, width, batch=1 if height == width else 2)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        prediction = pair.predict(inputs)
        terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t))
        loss = nn.functional.mse_loss(prediction.controlled.float(), target) + terms.loss
    loss.backward()
    aligner.remove()
    named = itertools.chain(pair.side.module.named_parameters("side"), aligner.named_parameters("decoder"))
    return prediction, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture(scope="module")
def pairs(sd15):
    return tiny.make_pair(sd15, share_prior=True), tiny.make_pair(sd15, share_prior=False)


def assert_equal(shared, separate):
    (a, grads), (b, expected) = shared, separate
    assert torch.equal(a.prior, b.prior)
    assert torch.equal(a.controlled, b.controlled)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, expected[name]), name
    # And none of it vacuous: control changes the prediction, and every parameter gets a gradient.
    assert (a.controlled - a.prior).abs().max() > 0.01
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith("decoder"))
    assert sum(bool(grad.abs().max() > 0) for grad in grads.values()) > 0.9 * len(grads)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "bf16"])
def test_shared_equals_separate(pairs, size, checkpointing, autocast):
    shared, separate = (step(p, *size, checkpointing=checkpointing, autocast=autocast) for p in pairs)
    assert_equal(shared, separate)
    assert len(shared[1]) == len(list(pairs[0].side.module.parameters())) + len(
        [name for name in shared[1] if name.startswith("decoder")]
    )


@pytest.mark.parametrize("folder", ["sd21", "sd_small"])
@pytest.mark.parametrize("layer", ["mid", "down.0"])
def test_other_models_and_layers(folder, layer, request):
    source = request.getfixturevalue(folder)
    shared, separate = (tiny.make_pair(source, share_prior=each) for each in (True, False))
    assert_equal(step(shared, 10, 14, layer=layer), step(separate, 10, 14, layer=layer))


def test_shared_modules_run_once(pairs):
    """The point of it: down blocks and middle block run once per step with sharing, twice without."""
    for pair, times in zip(pairs, (1, 2), strict=True):
        runs = Counter()
        watched = [*pair.main.network.down_blocks, pair.main.network.mid_block, pair.main.network.up_blocks[0]]
        with pytest.MonkeyPatch.context() as patch:
            for i, module in enumerate(watched):
                patch.setitem(module.__dict__, "forward", counting(runs, i, module))
            pair.predict(tiny.make_inputs(pair.main)[0])
        assert [runs[i] for i in range(len(watched))] == [times] * (len(watched) - 1) + [2]


def counting(runs, i, module):
    def forward(*args, **kwargs):
        runs[i] += 1
        return type(module).forward(module, *args, **kwargs)

    return forward


def test_zero_modules_give_the_prior(sd15):
    pair = tiny.make_pair(sd15, randomise=False)
    prediction = pair.predict(tiny.make_inputs(pair.main)[0])
    assert torch.equal(prediction.controlled, prediction.prior)
    assert not prediction.prior.requires_grad and prediction.controlled.requires_grad


def test_without_prior_nothing_is_shared(pairs):
    inputs, _ = tiny.make_inputs(pairs[0].main)
    alone, both = pairs[0].predict(inputs, need_prior=False), pairs[0].predict(inputs)
    assert alone.prior is None
    assert torch.equal(alone.controlled, both.controlled)


def test_held_out_pass_without_gradients(pairs):
    inputs, _ = tiny.make_inputs(pairs[0].main)
    with torch.no_grad():
        shared, separate = (pair.predict(inputs) for pair in pairs)
    assert torch.equal(shared.controlled, separate.controlled)


def test_hooks_of_others_apply_once(sd15):
    """A forward hook that changes a block's output must have its effect in both passes, and once in each."""
    results = []
    for share in (True, False):
        pair = tiny.make_pair(sd15, share_prior=share)
        block = pair.main.network.down_blocks[1]
        block.register_forward_hook(lambda _m, _i, output: (output[0], tuple(2 * skip for skip in output[1])))
        results.append(pair.predict(tiny.make_inputs(pair.main)[0]))
    assert torch.equal(results[0].prior, results[1].prior)
    assert torch.equal(results[0].controlled, results[1].controlled)


def test_offloading_hooks_stay_and_work(sd15):
    """accelerate's offloading replaces the instance's forward; sharing puts it back and gives the same result."""
    from accelerate import cpu_offload

    inputs, _ = tiny.make_inputs(tiny.make_pair(sd15).main)
    expected = tiny.make_pair(sd15).predict(inputs)
    pair = tiny.make_pair(sd15)
    cpu_offload(pair.main.network, torch.device("cpu"))
    blocks = pair.main.shared_modules()
    hooked = {name: module.__dict__["forward"] for name, module in pair.main.network.named_modules() if patched(module)}
    own = blocks[0].__dict__.setdefault("forward", blocks[0].forward)
    prediction = pair.predict(inputs)
    assert hooked and torch.equal(prediction.controlled, expected.controlled)
    assert blocks[0].__dict__["forward"] is own
    for name, module in pair.main.network.named_modules():
        if name in hooked:
            assert module.__dict__["forward"] is hooked[name]


def patched(module):
    return "forward" in module.__dict__


def test_nothing_is_left_behind(pairs):
    pairs[0].predict(tiny.make_inputs(pairs[0].main)[0])
    assert tiny.traces(pairs[0].main.network) == {}
    assert not pairs[0].shared.captured and not pairs[0].shared._outputs


class Boom(Exception):
    pass


def failing(*_args, **_kwargs):
    raise Boom


@pytest.mark.parametrize("where", ["prior, early", "prior, late", "side", "controlled"])
def test_nothing_is_left_behind_after_an_exception(sd15, where, monkeypatch):
    pair = tiny.make_pair(sd15)
    network = pair.main.network
    inputs, _ = tiny.make_inputs(pair.main)
    expected = pair.predict(inputs)
    with monkeypatch.context() as patch, pytest.raises(Boom):
        if where == "prior, early":
            patch.setattr(type(network.mid_block), "forward", failing)
        elif where == "prior, late":
            patch.setitem(network.conv_out.__dict__, "forward", fails_after(0, network.conv_out))
        elif where == "side":
            patch.setattr(type(pair.side), "forward", failing)
        else:
            patch.setitem(network.conv_out.__dict__, "forward", fails_after(1, network.conv_out))
        pair.predict(inputs)
    assert tiny.traces(network) == {}
    assert not pair.shared._outputs
    again = pair.predict(inputs)
    assert torch.equal(again.controlled, expected.controlled)


def fails_after(times, module):
    left = iter(range(times))

    def forward(x):
        if next(left, None) is None:
            raise Boom
        return type(module).forward(module, x)

    return forward


def test_what_was_kept_is_forgotten_after_failures_and_after_use(sd15):
    pair = tiny.make_pair(sd15)
    shared, (inputs, _) = pair.shared, tiny.make_inputs(pair.main)
    with pytest.raises(Boom), torch.no_grad(), shared.capture():
        pair.main.forward(inputs.x_t, inputs.t, inputs.context)
        raise Boom  # too late for the prior: everything had been kept
    assert not shared.captured
    for failure in (nullcontext(), pytest.raises(Boom)):
        with torch.no_grad(), shared.capture():
            pair.main.forward(inputs.x_t, inputs.t, inputs.context)
        assert shared.captured
        with failure, shared.replay():
            if not isinstance(failure, nullcontext):
                raise Boom
        assert not shared.captured and tiny.traces(pair.main.network) == {}


def test_replay_needs_a_capture(pairs):
    with pytest.raises(LisaError, match=r"nothing was captured.*capture"), pairs[0].shared.replay():
        pass


def test_module_that_does_not_run_is_named(pairs):
    network = pairs[0].main.network
    shared = SharedPrefix(network, [network.mid_block])
    with pytest.raises(LisaError, match="UNetMidBlock2DCrossAttn"), shared.capture():
        pass
    assert tiny.traces(network) == {}


@pytest.fixture
def fresh(sd15):
    return tiny.make_pair(sd15)


def refused(pair, words):
    with pytest.raises(LisaError, match=words) as caught:
        pair.predict(tiny.make_inputs(pair.main)[0])
    assert tiny.traces(pair.main.network) == {}
    return str(caught.value)


def test_freeu_is_refused(fresh):
    fresh.main.network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert "disable_freeu" in refused(fresh, "FreeU")
    fresh.main.network.disable_freeu()
    fresh.predict(tiny.make_inputs(fresh.main)[0])


@pytest.mark.parametrize("which", ["conv_in", "time_embedding", "down_blocks", "up_blocks"])
def test_trainable_main_network_is_refused(fresh, which):
    next(getattr(fresh.main.network, which).parameters()).requires_grad_(True)
    assert "share_prior=false" in refused(fresh, "trainable parameters")


def test_dropout_is_refused_only_where_it_acts(fresh):
    blocks = [m for m in fresh.main.network.down_blocks.modules() if isinstance(m, nn.Dropout)]
    blocks[0].p = 0.1
    fresh.predict(tiny.make_inputs(fresh.main)[0])  # in eval mode
    fresh.main.network.train()
    assert "main.eval()" in refused(fresh, "dropout")


def test_compiled_as_a_whole_is_refused_by_regions_is_not(fresh):
    network = fresh.main.network
    network._compiled_call_impl = lambda *a, **k: None  # what network.compile() sets
    message = refused(fresh, "compiled")
    assert "Train with share_prior=false, or compile only" in message and "compile_repeated_blocks" in message
    network._compiled_call_impl = None
    network.forward = torch.compile(network.forward, backend="eager")
    with pytest.raises(LisaError, match="compiled"):
        fresh.shared.check()
    del network.forward
    with pytest.raises(LisaError, match="compiled"):
        SharedPrefix(torch.compile(network, backend="eager"), fresh.main.shared_modules())
    network.compile_repeated_blocks(backend="eager")
    fresh.shared.check()


def test_checked_when_it_is_set_up(sd15):
    pair = tiny.make_pair(sd15, share_prior=False)
    pair.main.network.requires_grad_(True)
    with pytest.raises(LisaError, match="trainable"):
        SharedPrefix(pair.main.network, pair.main.shared_modules())


def test_trained_text_embeddings_are_refused(fresh):
    """Their gradient through the down blocks would be lost without a word."""
    inputs, _ = tiny.make_inputs(fresh.main)
    inputs.context["encoder_hidden_states"].requires_grad_(True)
    with pytest.raises(LisaError, match="gradient would have to pass"):
        fresh.predict(inputs)
    assert tiny.traces(fresh.main.network) == {}
