"""The start of a new side network's condition embedding, by the training's own conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lisa.core.meter import LearningMeter
from lisa.pairs import Pair
from lisa.processes.draws import Draws
from lisa.sides.embedding import find_condition_embedding, init_condition_embedding
from lisa.train.config import TrainConfig
from lisa.train.dataset import EncodedData
from lisa.train.step import ControlStep

# Conditions that are measured: as many as a convolution over their pixels has room for, within bounds.
_FEWEST, _MOST, _PIXELS = 8, 64, 2**22


def start_by_data(config: TrainConfig, pair: Pair, data: EncodedData, draws: Draws, device: torch.device) -> None:
    """Start the condition embedding of the new side network by the first conditions of the training, if it is to."""
    wanted = config.side.condition_init
    if wanted == "default" or (wanted == "auto" and find_condition_embedding(pair.side.module) is None):
        return
    height, width = config.data.height_width
    count = min(len(data), max(_FEWEST, min(_MOST, _PIXELS // (height * width))))
    step = ControlStep(pair, None, None, None, LearningMeter(), draws, 0.0)

    def run(rows: Sequence[int]) -> None:
        batch = data.collate(rows, [data.read(row, 0) for row in rows], device)
        pair.run_side(step.inputs(batch, 0)[0])

    size = config.train.batch_size
    init_condition_embedding(pair.side.module, run, [range(i, min(i + size, count)) for i in range(0, count, size)])
