import random

import numpy as np
import pytest
import torch
from torch import nn

from lisa.common.errors import LisaError
from lisa.core import attach

NAMES = {"down.0": "zeros.0", "down.1": "zeros.1"}


def dry_run(side, size=(18, 10)):
    def run():
        torch.manual_seed(99)  # as careless as can be
        side(torch.randn(2, 4, *size) + torch.rand(()))
        return size

    return run


def geometry(aligner) -> dict:
    return {key: (decoder.in_channels, decoder.upsamples) for key, decoder in aligner.decoders.items()}


@pytest.mark.parametrize("size", [(18, 10), (17, 9), (1, 64), (32, 32)])
def test_channels_and_stride_are_measured(make_side, size) -> None:
    side = make_side()
    aligner = attach(side, ["down.0", "down.1"], out_channels=4, names=NAMES, dry_run=dry_run(side, size))
    assert geometry(aligner) == {"down_0": (8, 0), "down_1": (16, 1)}


def test_of_a_module_of_any_kind(make_side) -> None:
    side = make_side()
    assert geometry(attach(side, "block", out_channels=4, dry_run=dry_run(side))) == {"block": (16, 1)}
    assert geometry(attach(side, "down", out_channels=4, tap="output", dry_run=dry_run(side))) == {"down": (16, 1)}
    assert geometry(attach(side, "down", out_channels=4, tap="input", dry_run=dry_run(side))) == {"down": (8, 0)}
    with pytest.raises(LisaError, match="channels of layer 'block' cannot be told"):
        attach(side, "block", out_channels=4, stride=2)


def test_with_a_stride_a_convolution_needs_no_dry_run(make_side) -> None:
    side = make_side()
    never = lambda: pytest.fail("the side network was run")  # noqa: E731
    assert geometry(attach(side, "zeros.1", out_channels=4, stride=2, dry_run=never)) == {"zeros_1": (16, 1)}
    assert geometry(attach(side, "down", out_channels=4, stride=2, tap="output")) == {"down": (16, 1)}
    both = attach(side, ["down.0", "zeros.1"], out_channels=4, names=NAMES, stride=(1, 2))
    assert geometry(both) == {"down_0": (8, 0), "zeros_1": (16, 1)}
    with pytest.raises(LisaError, match=r"stride of layer 'zeros\.1' cannot be told.*stride="):
        attach(side, "zeros.1", out_channels=4)


def test_tokens_are_measured() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.proj = nn.Conv2d(4, 24, 2, 2), nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.proj(self.patch(x).flatten(2).transpose(1, 2))

    side = Tokens()
    aligner = attach(side, "proj", out_channels=4, dry_run=lambda: (side(torch.zeros(1, 4, 6, 10)), (6, 10))[1])
    assert geometry(aligner) == {"proj": (24, 1)}
    side(torch.randn(2, 4, 12, 8))
    assert (
        aligner(torch.zeros(2, 4, 12, 8), torch.ones(2, 4, 12, 8), torch.tensor([1, 2])).decoded["proj"].shape[1] == 4
    )


def test_the_dry_run_and_the_decoders_leave_no_trace(make_side) -> None:
    side = make_side()
    side.block.eval()  # a mode of its own
    modes = [module.training for module in side.modules()]
    buffers = {name: buffer.clone() for name, buffer in side.named_buffers()}
    random_state, other = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].copy())

    def run():
        side.train()
        side.norm(torch.randn(4, 16, 4, 4))  # learns its running mean
        return dry_run(side)()

    attach(side, "down.1", out_channels=4, names=NAMES, dry_run=run)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert random.getstate() == other[0]
    assert (np.random.get_state()[1] == other[1]).all()
    assert [module.training for module in side.modules()] == modes
    assert all(torch.equal(buffers[name], buffer) for name, buffer in side.named_buffers())
    assert all(parameter.grad is None for parameter in side.parameters())


def test_a_dry_run_that_fails_takes_its_hooks_along(make_side) -> None:
    side = make_side()
    with pytest.raises(ZeroDivisionError):
        attach(side, "down.1", out_channels=4, names=NAMES, dry_run=lambda: 1 / 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.modules())
    assert side.training


def test_the_same_seed_gives_the_same_decoder_and_layers_differ(make_side) -> None:
    weights = []
    for seed in (5, 5, 6):
        side = make_side()
        torch.manual_seed(seed)
        aligner = attach(side, ["down.1", "block.inner"], out_channels=4, names=NAMES, stride=2)
        weights.append([decoder.time.weight.detach() for decoder in aligner.decoders.values()])
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][0], weights[0][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": "down.7"},
            r"ToySide has no layer 'down\.7' \(did you mean 'down\.[01]'\?\)\. Choices: down\.0, down\.1",
        ),
        ({"layer": "block.iner"}, r"did you mean 'block\.inner'"),
        ({"layer": ""}, "no layer ''"),
        ({"layer": []}, "at least one layer"),
        ({"layer": ["down.0", "down.0"]}, "each once"),
        ({"stride": 3}, "stride of 3.*power of two"),
        ({"stride": 0}, "stride of 0"),
        ({"stride": [1, 2]}, "2 strides for 1 layers"),
        ({"tap": "inputs"}, "unknown tap 'inputs'"),
        ({"weighting": "min_snr"}, "unknown weighting 'min_snr' .*'min-snr'.*plain, normalised, min-snr"),
        ({"weighting": "min-snr"}, "snr="),
        ({"prediction": "sample"}, "unknown prediction 'sample'"),
        ({"weight": -1.0}, r"weight of -1\.0"),
        ({"out_channels": 0}, "out_channels=0"),
    ],
)
def test_bad_arguments_are_errors_and_leave_no_hook(make_side, options, message) -> None:
    side = make_side()
    arguments = {"layer": "down.1", "out_channels": 4, "names": NAMES, "stride": 2, **options}
    with pytest.raises(LisaError, match=message):
        attach(side, arguments.pop("layer"), **arguments)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.modules())


def test_without_names_the_choices_are_the_networks_parts(make_side) -> None:
    with pytest.raises(LisaError, match=r"Choices: block, conv_in, down, drop, norm, zeros"):
        attach(make_side(), "mid", out_channels=4, stride=2)


def test_a_feature_that_is_at_no_power_of_two_is_an_error() -> None:
    side = nn.Sequential(nn.AvgPool2d(3), nn.Conv2d(4, 4, 1))
    with pytest.raises(LisaError, match="not 18x18 at a stride"):
        attach(side, "1", out_channels=4, dry_run=lambda: (side(torch.zeros(1, 4, 18, 18)), (18, 18))[1])


def test_a_compiled_network_is_seen_through(make_side) -> None:
    side = make_side()
    compiled = torch.compile(side, backend="eager")
    aligner = attach(compiled, "down.1", out_channels=4, names=NAMES, stride=2)
    x = torch.randn(2, 4, 8, 8)
    compiled(x)
    aligner(x, -x, torch.tensor([1, 2])).loss.backward()


def test_layer_names_that_are_no_module_keys_work() -> None:
    side = _Odd()
    aligner = attach(side, ["items", "a.b", "a_b"], out_channels=4, stride=1)
    side(torch.randn(1, 4, 4, 4))
    terms = aligner(torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.tensor([3]))
    assert list(terms.decoded) == ["items", "a.b", "a_b"]
    assert len(aligner.decoders) == 3


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items, self.a_b, self.a = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Module()
        self.a.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a_b(self.a.b(self.items(x)))
