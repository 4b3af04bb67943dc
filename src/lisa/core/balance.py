"""The alignment's gradient at a feature, held at a fixed ratio to the main loss's.

How much a given weight pulls at the side network depends on the model's target space, the decoder and the stage of the
training. Measured where both losses meet, at the tapped feature, it can be set once: as adaptive weights between losses
are elsewhere (VQGAN, arXiv 2012.09841, equation 7), but from one backward pass, with the norms of the steps before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GradientBalance(nn.Module):
    """Running norms of two gradients at one feature, and the factor that makes them equal.

    The decoder reads an alias of the feature. What comes back through the alias is the alignment's gradient; the rest
    of what arrives at the feature is the main loss's. Under several processes the first one's norms count for all
    (distributed wrappers broadcast buffers).
    """

    DECAY = 0.95  # per step: remembers about twenty
    LIMIT = 100.0  # of the factor, either way

    main: Tensor
    alignment: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("main", "alignment", "count"):
            self.register_buffer(name, torch.zeros(()))

    def factor(self) -> Tensor:
        """``|main gradient| / |alignment gradient|`` at weight 1, a scalar; 1 while either is not known."""
        ratio = (self.main / self.alignment.clamp(min=1e-30)).clamp(1 / self.LIMIT, self.LIMIT)
        known = (self.main > 0) & (self.alignment > 0)
        return torch.where(known, ratio, torch.ones_like(ratio))

    def watch(
        self, feature: Tensor, scale: Tensor | float, part: Callable[[Tensor], Tensor] = lambda whole: whole
    ) -> Tensor:
        """An alias of ``feature`` for the decoder; both gradients are measured in the backward pass.

        Args:
            feature: as the side network uses it, with its graph.
            scale: what the alignment loss is multiplied with in this step (its gradient is divided by it again).
            part: what the decoder reads of it, where that is not all; the norms are of the gradients there.
        """
        if not (self.training and torch.is_grad_enabled() and feature.requires_grad):
            return feature
        alias = feature.view_as(feature)
        aligned: list[Tensor] = []
        alias.register_hook(lambda gradient: aligned.append(gradient.detach()))  # type: ignore[no-untyped-call]

        def arrived(total: Tensor) -> None:
            # Everything that used the feature has been added up by now, the decoder's part included.
            if aligned:
                own = aligned.pop()
                self._learn(part(total - own).float().norm(), part(own).float().norm() / scale)

        feature.register_hook(arrived)  # type: ignore[no-untyped-call]
        return alias

    @torch.no_grad()
    def _learn(self, main: Tensor, alignment: Tensor) -> None:
        """Take up the norms of one step, unless one is zero (nothing has opened yet) or not finite."""
        good = (main > 0) & (alignment > 0) & main.isfinite() & alignment.isfinite()
        # The plain mean of the first steps, then an exponential one.
        rate = torch.where(good, (1 / (self.count + 1)).clamp(min=1 - self.DECAY), torch.zeros_like(self.count))
        for estimate, value in ((self.main, main), (self.alignment, alignment)):
            estimate.lerp_(torch.where(good, value, torch.zeros_like(value)).to(estimate), rate)
        self.count.add_(good.to(self.count))
