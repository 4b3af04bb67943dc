"""What a side network takes over from a main network, and what is refused to start at random."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lisa.common.errors import LisaError
from lisa.sides.copying import common_configuration, copy_weights


class Kind(nn.Module):
    def __init__(self, width: int = 2, depth: int = 1, only_here: int = 0) -> None:
        super().__init__()
        self.body, self.exit = nn.Linear(width, width), nn.Linear(width, width)


def test_configuration_is_what_both_know():
    network = SimpleNamespace(config={"width": 3, "depth": 9, "only_there": 1})
    assert common_configuration(Kind, network, depth=2) == {"width": 3, "depth": 2}


def test_weights_are_copied_and_new_parts_stay():
    source, module = Kind(), Kind()
    before = module.exit.weight.clone()
    weights = {name: value for name, value in source.state_dict().items() if name.startswith("body")}
    copy_weights(module, weights | {"elsewhere.weight": torch.zeros(1)}, new=["exit"])
    assert torch.equal(module.body.weight, source.body.weight) and torch.equal(module.exit.weight, before)
    assert module.body.weight.data_ptr() != source.body.weight.data_ptr()


def test_nothing_starts_at_random_silently():
    weights = {name: value for name, value in Kind().state_dict().items() if name != "body.bias"}
    with pytest.raises(LisaError, match=r"no weights for 1 parts of a Kind: body\.bias"):
        copy_weights(Kind(), weights, new=["exit"])
    with pytest.raises(LisaError, match=r"do not fit a Kind: .*size mismatch for"):
        copy_weights(Kind(), Kind(width=3).state_dict(), new=["exit"])
