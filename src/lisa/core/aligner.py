"""Likelihood score alignment: feature taps, decoders and loss as one module (arXiv 2606.27192)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.core.balance import GradientBalance
from lisa.core.feature_tap import FeatureTap, Through
from lisa.core.frames import fold, fold_feature, unfold
from lisa.core.residual import NoiseLevelWeighting, likelihood_residual, make_weighting, sample_sums, widened
from lisa.core.terms import AlignmentTerms, idle_terms

REFERENCE_WEIGHT = 0.2


class LikelihoodAligner(nn.Module):
    """Asks a decoder to read the likelihood score off the side network's features.

    Made by :func:`lisa.core.attach`. Its parameters are the decoders' only: give them to the optimiser. The side
    network is not a submodule. ``weight`` may be set at any time; at 0 nothing is caught, nothing computed, and no
    prior is needed.

    Args:
        taps: by layer name, where features are caught.
        decoders: for each tap a module ``decoder(feature, timesteps, (H, W), x_t) -> (B, C, H, W)``. With no tap and no
            decoder the aligner is idle for good.
        weight: of the alignment in the loss, 0 or more.
        weighting: by noise level; plain by default.
        balanced: ``weight`` is then the ratio of the alignment's gradient to the main loss's at each tapped feature,
            by the running norms of both (:class:`lisa.core.balance.GradientBalance`).
        reads_prior: decoders are given the prior behind x_t, and take both as their ``x_t``.

    Raises:
        LisaError: taps and decoders that do not match, a weight that is negative or not a number.
    """

    def __init__(
        self,
        taps: Mapping[str, FeatureTap],
        decoders: Mapping[str, nn.Module],
        *,
        weight: float = REFERENCE_WEIGHT,
        weighting: NoiseLevelWeighting | None = None,
        balanced: bool = False,
        reads_prior: bool = False,
    ) -> None:
        super().__init__()
        if list(taps) != list(decoders):
            raise LisaError(f"taps {list(taps)} and decoders {list(decoders)} do not match", "Give one decoder per tap")
        self._taps = dict(taps)
        self._keys = _module_keys(decoders)
        self.decoders = nn.ModuleDict({self._keys[layer]: decoder for layer, decoder in decoders.items()})
        self.weighting = weighting if weighting is not None else make_weighting("plain")
        self._balances = {key: GradientBalance() for key in self._keys.values()} if balanced else {}
        self.balances = nn.ModuleDict(self._balances)  # buffers, which checkpoints hold
        self._reads_prior = reads_prior
        self._removed = False
        self._weight = 0.0
        self.weight = weight

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the tapped layers, as they were given."""
        return tuple(self._taps)

    @property
    def weight(self) -> float:
        """Weight of the alignment in the loss; 0 puts the aligner to sleep."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        value = check_weight(value)
        if value > 0 and not self._taps:
            raise LisaError(
                f"the alignment weight cannot become {value}: it was 0 when attached, so there is no decoder",
                "Attach it with a positive weight; set weight to 0 afterwards while it should rest",
            )
        self._weight = value
        for tap in self._taps.values():
            if tap.enabled != (value > 0):
                tap.enabled = value > 0

    def forward(
        self,
        target: Tensor,
        prior: Tensor | None,
        timesteps: Tensor,
        *,
        x_t: Tensor | None = None,
        sample_weight: Tensor | None = None,
        share: float = 1.0,
    ) -> AlignmentTerms:
        """Alignment of the features caught in the last forward of the side network.

        ``loss = weight * mean over layers and samples of [w(t) * sample_weight * mse(decoder(f, t), target - prior)]``,
        in fp32 also under autocast. Never synchronises the device. Under ``no_grad`` no running estimate learns.
        Decoders read clips frame by frame, all at the clip's noise level; whatever is counted per sample is per clip.

        Args:
            target: (B, C, H, W), what the model is trained to predict; of clips (B, C, f, H, W).
            prior: same shape, the frozen main network's prediction on the same x_t, t and text without control. May be
                None while ``weight`` is 0.
            timesteps: (B,), 0 to 1000 whatever the model counts (a process's ``decoder_time``), or one number for all.
            x_t: shaped like the target, for decoders that take it; at the scale at which the networks are given it (a
                process's ``model_input``: EDM's noisy latents grow with the noise level).
            sample_weight: (B,), multiplies each sample's loss (the mean stays over all samples); not in R2.
            share: of this call in a step that aligns several times: multiplies the loss.

        Raises:
            LisaError: no feature was caught or it was read already, shapes that do not fit, or a removed aligner.

        Example:
            >>> terms = aligner(target=noise, prior=prior, timesteps=t)
            >>> loss = mse(controlled, noise) + terms.loss
        """
        if self._removed:
            raise LisaError("the aligner has been removed from its side network", "Attach a new one")
        # At weight 0 only a pass inside observing() can have left features behind.
        if not self._taps or (self._weight == 0 and not all(tap.waiting for tap in self._taps.values())):
            return idle_terms(target, prior)
        if prior is None:
            raise LisaError(
                "the alignment needs the prior", "Pass the main network's prediction without control as prior="
            )
        if self._reads_prior and x_t is not None:
            x_t = torch.cat([widened(x_t), widened(prior)], dim=1)
        size = (target.shape[-2], target.shape[-1])
        features = {layer: tap.read(size, self._watching(layer, share)) for layer, tap in self._taps.items()}
        with torch.autocast(target.device.type, enabled=False):
            return self._terms(features, likelihood_residual(target, prior), timesteps, x_t, sample_weight, share)

    def _terms(
        self,
        features: dict[str, Tensor],
        residual: Tensor,
        timesteps: Tensor,
        x_t: Tensor | None,
        sample_weight: Tensor | None,
        share: float,
    ) -> AlignmentTerms:
        batch = residual.shape[0]
        timesteps = _per_sample(timesteps, batch, "timesteps")
        learning = self.training and torch.is_grad_enabled()
        factor = self.weighting(residual, timesteps, learning).detach()
        if sample_weight is not None:
            factor = factor * _per_sample(sample_weight, batch, "sample_weight").to(factor)
        scales = {layer: self._scale(layer) for layer in features}
        decoded = {layer: self._decode(layer, feature, residual, timesteps, x_t) for layer, feature in features.items()}
        errors = {layer: sample_sums(score - residual) for layer, score in decoded.items()}
        error = torch.stack(list(errors.values())).mean(dim=0)
        energy = sample_sums(residual)
        alignment = (factor * error).mean() / residual[0].numel()
        loss = alignment
        if self._balances:
            scaled = torch.stack([scales[layer] * layer_error for layer, layer_error in errors.items()]).mean(dim=0)
            loss = (factor * scaled).mean() / residual[0].numel()
        return AlignmentTerms(
            loss=self._weight * share * loss,
            alignment=alignment.detach(),
            r2=1 - error.detach().sum() / energy.sum(),
            decoded={layer: score.detach() for layer, score in decoded.items()},
            residual=residual,
            squared_error=error.detach(),
            squared_residual=energy,
            by_layer={layer: 1 - layer_error.detach().sum() / energy.sum() for layer, layer_error in errors.items()},
        )

    def _scale(self, layer: str) -> Tensor | float:
        """What the layer's error is multiplied with beside the weight."""
        return self._balances[self._keys[layer]].factor() if self._balances else 1.0

    def _watching(self, layer: str, share: float) -> Through | None:
        """What measures both gradients where they meet: at the whole feature, of which the decoder reads a part."""
        if not self._balances:
            return None
        scale = self._weight * share * self._scale(layer)
        return lambda feature, part: self._balances[self._keys[layer]].watch(feature, scale, part)

    def _decode(self, layer: str, feature: Tensor, residual: Tensor, timesteps: Tensor, x_t: Tensor | None) -> Tensor:
        batch, frames = residual.shape[0], residual.shape[2] if residual.ndim == 5 else 1
        feature = fold_feature(feature, batch, frames, layer)
        size = (residual.shape[-2], residual.shape[-1])
        score: Tensor = self.decoders[self._keys[layer]](
            feature, timesteps.repeat_interleave(frames), size, None if x_t is None else fold(x_t)
        )
        if residual.ndim == 5:
            score = unfold(score, frames)
        if score.shape != residual.shape:
            raise LisaError(
                f"the decoder of layer {layer!r} gives {tuple(score.shape)}, the target is {tuple(residual.shape)}",
                "Attach with out_channels= the number of channels of the target",
            )
        return widened(score)

    @contextmanager
    def observing(self) -> Iterator[LikelihoodAligner]:
        """Inside, forwards of the side network are caught in eval mode and without gradients too.

        For held-out readings. Works at weight 0 as well.

        Example:
            >>> with torch.no_grad(), aligner.observing():
            ...     controlled = predict(batch)
            ...     terms = aligner(target, prior, t)
        """
        with ExitStack() as stack:
            for tap in self._taps.values():
                stack.enter_context(tap.observing())
            yield self

    def remove(self) -> None:
        """Take every hook off the side network, which is then exactly as it was. Harmless when repeated."""
        self._removed = True
        for tap in self._taps.values():
            tap.remove()


def check_weight(value: float) -> float:
    """``value`` as a float.

    Raises:
        LisaError: it is negative, infinite or not a number.
    """
    if not (math.isfinite(value) and value >= 0):
        raise LisaError(f"an alignment weight of {value}", "Give 0 or a positive number; the reference is 0.2")
    return float(value)


def _module_keys(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """A legal and unique ModuleDict key for each layer name: no dots, no name of one of ModuleDict's own attributes."""
    keys: dict[str, str] = {}
    for layer in layers:
        key = layer.replace(".", "_")
        while key in keys.values() or hasattr(nn.ModuleDict, key):
            key += "_"
        keys[layer] = key
    return keys


def _per_sample(values: Tensor, batch: int, name: str) -> Tensor:
    if values.shape not in ((), (1,), (batch,)):
        raise LisaError(f"{name} of shape {tuple(values.shape)} for {batch} samples", "Give one number per sample")
    return values.expand(batch)
