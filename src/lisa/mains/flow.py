"""Main networks that are rectified flows: the process that their scheduler tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lisa.processes.flow import RectifiedFlowProcess


def flow_process(scheduler: Mapping[str, Any], model_time_scale: float) -> RectifiedFlowProcess:
    """The process of a scheduler's configuration.

    Where the scheduler shifts by the size of the picture (``use_dynamic_shifting``), that belongs to sampling, and
    training timesteps are not shifted.
    """
    dynamic = bool(scheduler.get("use_dynamic_shifting"))
    # Solvers of other families (DPM-Solver, UniPC) call flow_shift what the schedulers made for flows call shift.
    shift = 1.0 if dynamic else float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)
    return RectifiedFlowProcess(shift=shift, model_time_scale=model_time_scale)
