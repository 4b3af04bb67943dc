"""What ``lisa generate`` chooses or refuses before it loads anything: solver, negative prompt, types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lisa.build.checks import check_float16
from lisa.build.memory import check_quantized
from lisa.common.errors import LisaError, choose
from lisa.pairs import PairSpec
from lisa.sample.pictures import SOLVERS
from lisa.train.config import TrainConfig
from lisa.train.network_settings import ModelSettings


def check_sampling(solver: str | None, negative_prompt: str | None, guidance: float, spec: PairSpec) -> None:
    """Refuse a solver that there is not, or a negative prompt that would make no difference.

    Raises:
        LisaError: so it is.
    """
    if solver is not None:
        choose("solver", solver, SOLVERS)
    if negative_prompt is None:
        return
    if not spec.call.negates:
        raise LisaError(f"{spec.pipeline_name} makes no use of a negative prompt", "Leave out --negative-prompt")
    if guidance <= 1:
        raise LisaError(f"a negative prompt at guidance {guidance:g} makes no difference", "Give --guidance above 1")


def choose_dtype(asked: str | None, spec: PairSpec, runs: Sequence[TrainConfig | None]) -> str:
    """``asked``, or what the first run's main network was trained in."""
    found = next((run.main_dtype for run in runs if run is not None), "float32")
    dtype = choose("type", asked or found, ("float32", "bfloat16", "float16"))
    if dtype == "float16":
        check_float16("--dtype float16", spec, "Use --dtype bfloat16")
    return dtype


def choose_quantize(
    asked: str | None,
    dtype: str,
    model: ModelSettings,
    runs: Sequence[TrainConfig | None],
    progress: Callable[[str], Any] | None,
) -> str:
    """``asked``, or how the first run's main network was read, if it can be read so here.

    Raises:
        LisaError: it was asked for and cannot be had: no bitsandbytes or CUDA, a single file, or float32.
    """
    found = next((run.model.quantize for run in runs if run is not None), "none")
    quantize = choose("quantisation", asked or found, ("none", "int8", "nf4"))
    try:
        check_quantized(quantize, model.path)
        if quantize != "none" and dtype == "float32":
            raise LisaError(f"--quantize {quantize} computes in 16 bits", "Add --dtype bfloat16")
    except LisaError as error:
        if asked is not None:
            raise
        if progress is not None:
            progress(f"the run's main network was in {found}; here it is read as it is: {error.problem}")
        return "none"
    return quantize
