"""What one call of the aligner returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lisa.core.residual import likelihood_residual, widened


@dataclass(frozen=True)
class AlignmentTerms:
    """What one call of the aligner found. Nothing in it has been moved off the device.

    Attributes:
        loss: scalar with gradient to decoder and side network, alignment weight included: add it to the model's loss.
        alignment: scalar, the loss without the alignment weight; for the log.
        r2: scalar, ``1 - sum|residual - decoded|^2 / sum|residual|^2`` over batch and layers: how much of the
            likelihood score is readable. NaN where the aligner was idle.
        decoded: the likelihood score read off each layer, shaped like the target, by layer name.
        residual: ``target - prior``, of the same shape; empty where the aligner was idle and had no prior.
        squared_error: (B,), each sample's ``sum|residual - decoded|^2``, the mean over layers. NaN where idle.
        squared_residual: (B,), each sample's ``sum|residual|^2``. NaN where the aligner was idle.
        by_layer: ``r2`` of each layer.
    """

    loss: Tensor
    alignment: Tensor
    r2: Tensor
    decoded: dict[str, Tensor]
    residual: Tensor
    squared_error: Tensor
    squared_residual: Tensor
    by_layer: dict[str, Tensor]


def idle_terms(target: Tensor, prior: Tensor | None) -> AlignmentTerms:
    """Terms of a call at weight 0: no loss, and nothing known."""
    wide = widened(target.detach())
    unknown = torch.full((), math.nan, device=wide.device, dtype=wide.dtype)
    return AlignmentTerms(
        loss=torch.zeros_like(unknown),
        alignment=unknown,
        r2=unknown,
        decoded={},
        residual=wide.new_empty(0) if prior is None else likelihood_residual(target, prior),
        squared_error=unknown.expand(target.shape[0]),
        squared_residual=unknown.expand(target.shape[0]),
        by_layer={},
    )
