"""The start of a new side network's condition embedding, by the training's own conditions."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from lisa.build.launch import say
from lisa.common.errors import LisaError
from lisa.core.meter import LearningMeter
from lisa.pairs import Pair
from lisa.processes.draws import Draws
from lisa.sides.embedding import find_condition_embedding, init_condition_embedding
from lisa.train.config import TrainConfig
from lisa.train.dataset import EncodedData
from lisa.train.step import ControlStep

# Samples that are measured: as many as are no great load, within bounds.
_FEWEST, _MOST, _PIXELS = 8, 64, 2**22


def start_by_data(config: TrainConfig, pair: Pair, data: EncodedData, draws: Draws, accelerator: Accelerator) -> None:
    """Start the condition embedding of a new side network by conditions of the training, if it is to.

    Raises:
        LisaError: it was asked for by name, and the conditions do not differ.
    """
    wanted, side = config.side.condition_init, pair.side.module
    if wanted == "default" or config.side.init is not None or find_condition_embedding(side) is None:
        return
    height, width = config.data.height_width
    room = _PIXELS // (height * width * (config.data.frames or 1))
    count = min(len(data), max(_FEWEST, min(_MOST, room)))
    chosen = [i * len(data) // count for i in range(count)]  # neighbours, such as shots of one film, may be alike
    step = ControlStep(pair, None, None, None, LearningMeter(), draws, 0.0)

    def run(rows: Sequence[int]) -> None:
        batch = data.collate(rows, [data.read(row, 0) for row in rows], accelerator.device)
        with accelerator.autocast():
            pair.run_side(step.inputs(batch, 0)[0])

    size = config.train.batch_size
    try:
        rows = [chosen[i : i + size] for i in range(0, count, size)]
        factor = pair.main.latent_factor
        init_condition_embedding(side, run, rows, latent=(height // factor, width // factor))
    except LisaError as error:
        if wanted != "auto":
            raise
        if accelerator.is_main_process:
            say(f"side.condition_init=auto leaves the start as it is: {error.problem}")
