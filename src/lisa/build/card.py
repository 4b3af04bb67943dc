"""The model card of a run, from what its folder tells: while it trains, at its end, and when it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lisa.build import parts
from lisa.common.runfolder import RunFolder
from lisa.export.card import CardFacts, write_card
from lisa.pairs import pair_spec
from lisa.train.config import TrainConfig


def write_run_card(
    folder: Path,
    run_folder: RunFolder,
    config: TrainConfig,
    steps: int,
    call_options: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Write the card into ``folder``; with figures, curves and samples where there is a ``summary``.

    ``call_options``: of ``Pair.call``, what the pipeline is called with beside prompt and condition.
    """
    spec = pair_spec(config.model.pair)
    batch = config.train.batch_size * config.train.accumulation
    finished: dict[str, Any] = {}
    if summary is not None:
        batch = summary.get("batch_size", batch)
        drawn = summary["picture"]  # None: it could not be drawn
        picture = None if drawn is None else run_folder.samples / Path(drawn).name  # wherever the run folder is now
        finished = {
            "summary": summary,
            "readings": list(run_folder.read_events("held_out")),
            "fidelity_readings": list(run_folder.read_events("fidelity")),
            "samples": picture if picture is not None and picture.is_file() else None,
        }
        if spec.call.clips and picture is not None and (moving := picture.with_suffix(".webp")).is_file():
            finished["moving"] = moving
    facts = CardFacts(
        title=f"{run_folder.path.resolve().name}: {', '.join(config.data.conditions)}",
        side_kind=spec.side_kind,
        pipeline=spec.pipeline_name,
        package=spec.package,
        call=replace(spec.call, more=call_options),
        model=config.model.path,
        data=config.data.source,
        conditions=config.data.conditions,
        size=config.data.height_width,
        rate=parts.known_rate(config.data),
        steps=steps,
        aligned=config.align.active,
        ema=config.train.ema,
        settings={
            "pair": spec.name,
            "batch size": batch,
            "learning rate": config.train.learning_rate,
            "alignment": describe_alignment(config, spec.default_layer),
            "precision": describe_precision(config),
            **_where_set(config),
            "sampling": f"{config.sample.steps} steps, guidance {config.sample.guidance}",
        },
        **finished,
    )
    write_card(folder, facts)


def describe_alignment(config: TrainConfig, default_layer: str) -> str:
    """How a run was aligned, in a few words."""
    align = config.align
    if not align.active:
        return "none"
    layers = align.layer if align.layer is not None else default_layer
    return (
        f"{'layer ' + layers if isinstance(layers, str) else 'layers ' + ', '.join(layers)}, weight {align.weight}, "
        f"{align.weighting} weighting, {align.schedule} schedule"
    )


def describe_precision(config: TrainConfig) -> str:
    """The types of main and side network while it was trained, and the main network's bits."""
    mixed, bits = config.train.mixed_precision, config.model.quantize
    main = config.main_dtype if bits == "none" else f"{bits}, computed in {config.main_dtype}"
    return f"main network {main}, side network float32" + ("" if mixed == "no" else f" with {mixed} autocast")


def _where_set(config: TrainConfig) -> dict[str, Any]:
    """What most trainings leave at its default."""
    side, rank, log_sigma = config.side, config.side.lora_rank, config.model.log_sigma
    where = f" on {', '.join(side.lora_targets)}" if side.lora_targets else ""
    facts = {
        "preset": config.preset,
        "side.condition_init": None if side.condition_init == "default" else side.condition_init,
        "low-rank adapters": None if rank is None else f"rank {rank}{where}, merged into the weights",
        "main loss": None if config.train.snr_gamma is None else f"min-SNR weighting, gamma {config.train.snr_gamma:g}",
        "control type": side.control_type,
        "embedded guidance": config.model.guidance,
        "frames": config.data.frames,
        "frames per second": parts.known_rate(config.data),
        "log sigma (mean, deviation)": None if log_sigma is None else ", ".join(f"{each:g}" for each in log_sigma),
    }
    return {name: value for name, value in facts.items() if value is not None}
