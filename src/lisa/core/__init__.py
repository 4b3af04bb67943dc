"""The core: feature tap, decoder, residual, aligner, schedule and meter. Knows tensors; needs torch only.

For a loop of one's own::

    aligner = attach(side_network, "mid", out_channels=4, names={"mid": "controlnet_mid_block"}, stride=8)
    ...                                    # the usual controlled forward; the feature is caught
    terms = aligner(target, prior, timesteps)
    loss = mse(controlled, target) + terms.loss
"""

from lisa.core.aligner import REFERENCE_WEIGHT, LikelihoodAligner
from lisa.core.attaching import attach
from lisa.core.decoder import LikelihoodDecoder, to_map
from lisa.core.feature_tap import FeatureTap
from lisa.core.held_out import ConditionGap, OnsetDetector, SampleSums, condition_gap, derangement
from lisa.core.meter import LearningMeter, MeterReading
from lisa.core.residual import (
    NoiseLevelWeighting,
    WeightingContext,
    likelihood_residual,
    make_weighting,
    register_weighting,
    weighting_names,
)
from lisa.core.schedule import WeightSchedule, make_schedule, schedule_names
from lisa.core.terms import AlignmentTerms

__all__ = [
    "REFERENCE_WEIGHT",
    "AlignmentTerms",
    "ConditionGap",
    "FeatureTap",
    "LearningMeter",
    "LikelihoodAligner",
    "LikelihoodDecoder",
    "MeterReading",
    "NoiseLevelWeighting",
    "OnsetDetector",
    "SampleSums",
    "WeightSchedule",
    "WeightingContext",
    "attach",
    "condition_gap",
    "derangement",
    "likelihood_residual",
    "make_schedule",
    "make_weighting",
    "register_weighting",
    "schedule_names",
    "to_map",
    "weighting_names",
]
