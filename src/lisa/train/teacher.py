"""An average of the side network's own past: a controlled prediction with less noise in it than a sample's target.

The residual ``target - prior`` of one sample is the likelihood score plus noise that no network can predict. What a
trained side network adds to the prior has no such noise, but whatever error the network still has. A share of it in the
target trades the one for the other (mean teachers: arXiv 1703.01780).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lisa.pairs import Inputs, Pair
from lisa.train.averaging import trained_parameters


class Teacher:
    """See the module. Made once the side network is on the device where it is trained.

    Args:
        pair: its side network's trained parameters are averaged.
        share: of the teacher's prediction in the target, 0 to 1.
        decay: of the average, per optimiser step.
    """

    def __init__(self, pair: Pair, share: float, decay: float) -> None:
        self.pair, self.share, self.decay = pair, share, decay
        self._average = [parameter.detach().clone() for parameter in trained_parameters(pair.side.module)]
        self._step = 0

    @torch.no_grad()
    def target(self, target: Tensor, inputs: Inputs, step: int) -> Tensor:
        """``(1 - share) * target + share * teacher``, (B, C, H, W).

        The average first follows the weights, once per step.
        """
        self.follow(step)
        with self._teaching():
            prediction = self.pair.control(inputs)
        return torch.lerp(target, prediction.to(target), self.share)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take the weights into the average, if ``step`` is a new one."""
        if step > self._step:
            current = [parameter.detach() for parameter in trained_parameters(self.pair.side.module)]
            torch._foreach_lerp_(self._average, current, 1 - self.decay)
            self._step = step

    def state_dict(self) -> dict[str, Any]:
        """The average, and the step that it follows up to."""
        return {"step": self._step, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._step = state["step"]
        self._average = [old.to(own) for old, own in zip(state["average"], self._average, strict=True)]

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """The side network with the average for weights, in eval mode and without its distributed wrapper.

        Tensors change places, nothing is copied: a graph that waits for its backward pass finds its own back. Autocast
        remembers half-precision copies by parameter, whatever is in it: of the weights before, and of the average.
        """
        side, parameters = self.pair.side, trained_parameters(self.pair.side.module)
        callee, training, own = side.callee, side.module.training, [parameter.data for parameter in parameters]
        side.callee = side.module.eval()
        for parameter, average in zip(parameters, self._average, strict=True):
            parameter.data = average
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            for parameter, data in zip(parameters, own, strict=True):
                parameter.data = data
            torch.clear_autocast_cache()
            side.callee = callee
            side.module.train(training)
