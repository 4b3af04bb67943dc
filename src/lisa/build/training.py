"""``lisa train``: everything put together, the loop run, the result evaluated and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from lisa.build import parts
from lisa.build.condition_start import start_by_data
from lisa.build.fidelity import FidelityReadings, judged_conditions
from lisa.build.launch import begin_tracking, record_start, say, session, track_picture, under_autocast
from lisa.build.memory import check_device, offload_to
from lisa.build.result import Results
from lisa.common.runfolder import RunFolder
from lisa.core.aligner import LikelihoodAligner
from lisa.core.meter import LearningMeter
from lisa.pairs import Pair
from lisa.processes.draws import Draws
from lisa.train import callbacks as cb
from lisa.train.averaging import averaged_weights, trained_parameters
from lisa.train.batches import BatchPlan
from lisa.train.checkpoint import Checkpoints, Shares, find_checkpoint
from lisa.train.config import TrainConfig
from lisa.train.dataset import EncodedData, batches
from lisa.train.held_out import HeldOutMeter
from lisa.train.loop import LoopState, Training, run
from lisa.train.resuming import as_configured
from lisa.train.settings import check_settings, load_settings
from lisa.train.step import ControlStep

Summary = dict[str, Any]


def train(config: TrainConfig | Mapping[str, Any] | str | Path, *, quiet: bool = False) -> Summary | None:
    """Train a side network.

    Args:
        config: a :class:`TrainConfig`, a mapping of its sections, or the path of a YAML file.
        quiet: no progress bar.

    Returns:
        The content of ``summary.json``; None if the training was interrupted (a checkpoint is then written, and
        ``resume="latest"`` goes on from it).

    Raises:
        LisaError: anything wrong with configuration, data or models, before any long work; see ``lisa.common.errors``.
        TrainingStopped: the loss was not finite too many steps in a row.
    """
    if isinstance(config, str | Path):
        config = load_settings(TrainConfig, config)
    elif not isinstance(config, TrainConfig):
        config = check_settings(TrainConfig, dict(config))
    started = time.monotonic()
    run_folder = RunFolder(config.out)
    run_folder.check(overwrite=config.overwrite, resume=config.resume is not None)
    if config.resume is not None:
        find_checkpoint(run_folder, config.resume)  # refused before any long work, if there is none
    parts.check_before_loading(config)
    with session(config) as accelerator, ExitStack() as held:
        check_device(config, accelerator.device)
        data = parts.open_data(config.data, config.seed)
        judged_conditions(config, data)
        set_seed(config.seed)  # the side network's initial weights, the same in every arm
        pair = parts.build_pair(config)
        aligner, schedule = parts.build_alignment(config, pair)
        accelerator.wait_for_everyone()  # every process has looked at the folder before one of them changes it
        if accelerator.is_main_process:
            held.enter_context(run_folder.locked())
            run_folder.open(overwrite=config.overwrite, resume=config.resume is not None)
        accelerator.wait_for_everyone()
        # Now that no other training goes on here, which might have left a later one.
        checkpoint = find_checkpoint(run_folder, config.resume) if config.resume is not None else None
        begin_tracking(accelerator, config)
        built = _assemble(config, run_folder, accelerator, pair, aligner, schedule, data, checkpoint is None, quiet)
        if checkpoint is not None:
            with as_configured(built.training.optimizer, built.training.scheduler, built.ema):
                built.checkpoints.load(checkpoint)
        built.readings.restore(checkpoint)
        if accelerator.is_main_process:
            record_start(config, run_folder, data, built.training.state.step, checkpoint, quiet)
            built.checkpoints.give_up_after(built.training.state.step)
        if not run(built.training):
            return None
        with built.final_weights():
            return built.results.finish(built.training.state, built.held_out, time.monotonic() - started)


@dataclass(frozen=True)
class _Built:
    training: Training
    checkpoints: Checkpoints
    held_out: HeldOutMeter
    results: Results
    readings: FidelityReadings
    ema: Any
    final_weights: Any


def _assemble(
    config: TrainConfig,
    run_folder: RunFolder,
    accelerator: Accelerator,
    pair: Pair,
    aligner: LikelihoodAligner | None,
    schedule: Any,
    data: parts.DataParts,
    fresh: bool,
    quiet: bool,
) -> _Built:
    """Data, optimiser, meters and callbacks around the pair."""
    from diffusers.optimization import get_scheduler

    settings, draws = config.train, Draws(config.seed)
    train_data, held_data = _encode(config, accelerator, pair, data, None if quiet else say)
    if fresh:
        start_by_data(config, pair, train_data, draws, accelerator)
    optimizer, clip = parts.build_optimizer(config, pair, aligner, accelerator.device)
    # Not handed to accelerate, which would step it once per process: here it is once per optimiser step.
    scheduler = get_scheduler(
        settings.lr_schedule,
        optimizer,
        # The polynomial one divides by the steps that are left.
        num_warmup_steps=min(settings.warmup, settings.steps - (settings.lr_schedule == "polynomial")),
        num_training_steps=settings.steps,
    )
    options = parts.alignment_options(config, pair)
    align = _prepare(accelerator, pair, aligner)
    optimizer = accelerator.prepare(optimizer)
    ema, final_weights = _moving_average(config, pair)
    meter, state = LearningMeter(), LoopState()
    # The held-out noise is the set's own, not the seed's: readings of different seeds are on the same noise, too.
    held_out = HeldOutMeter(
        pair, aligner, schedule, held_data, Draws(0), config.log.held_out_levels, settings.batch_size, accelerator
    )
    events = cb.EventLog(run_folder, config.log.every)
    results = Results(config, run_folder, accelerator, pair, data)
    readings = FidelityReadings(results, final_weights)
    shares = [Shares(each, accelerator) for each in (meter, events)]
    kept = [state, scheduler, *shares, held_out, readings, schedule, ema, options.teacher]
    accelerator.register_for_checkpointing(*[each for each in kept if each is not None])
    dropout, weighting = settings.caption_dropout, parts.main_weighting(config, pair)
    control_step = ControlStep(pair, aligner, align, schedule, meter, draws, dropout, options, weighting)
    exports = {**_exports(results, state, aligner, final_weights), run_folder.best.name: readings.keep}
    checkpoints = Checkpoints(run_folder, accelerator, exports, config.log.checkpoint_limit)
    training = Training(
        accelerator=accelerator,
        step=under_autocast(control_step, accelerator),
        batches=partial(
            _batches, train_data, _plan(config, accelerator, len(data.train)), accelerator.device, config.data.workers
        ),
        modules=[pair.side.callee] if align is None else [pair.side.callee, align],
        optimizer=optimizer,
        scheduler=scheduler,
        total_steps=settings.steps,
        clip=clip,
        state=state,
        max_skipped=settings.max_skipped,
        callbacks=_callbacks(
            config,
            run_folder,
            accelerator,
            events,
            held_out,
            meter,
            ema,
            pair,
            readings,
            checkpoints,
            final_weights,
            quiet,
        ),
    )
    return _Built(training, checkpoints, held_out, results, readings, ema, final_weights)


def _callbacks(
    config: TrainConfig,
    run_folder: RunFolder,
    accelerator: Accelerator,
    events: cb.EventLog,
    held_out: HeldOutMeter,
    meter: LearningMeter,
    ema: Any,
    pair: Pair,
    readings: FidelityReadings,
    checkpoints: Checkpoints,
    final_weights: Any,
    quiet: bool,
) -> list[Any]:
    log = config.log
    shown: dict[str, float] = {}

    def read_meter() -> dict[str, float]:
        reading = meter.read()
        meter.reset()
        if not reading.count:
            return {}
        shown["gain"] = reading.control_gain
        return {"control_gain": reading.control_gain, "decoder_r2": reading.decoder_r2}

    events.extra = read_meter

    def read_held_out(step: int) -> None:
        gap, levels = held_out.read(step), held_out.by_noise_level.read().to_json()["by_bin"]
        shown["gap"] = gap.gap.value
        if accelerator.is_main_process:
            values = {**gap.to_json(), "onset": held_out.onset.onset, "by_noise_level": levels}
            run_folder.log(step, "held_out", values)
            flat = {f"held_out/{name}": value["value"] for name, value in gap.to_json().items()}
            accelerator.log({name: value for name, value in flat.items() if value is not None}, step=step)

    def draw(step: int) -> None:
        if accelerator.is_main_process:
            # Autocast is for the side network; see sample_pictures.
            with final_weights(), pair.main.encoders(), accelerator.autocast():
                grid = readings.results.draw_samples(step)
            if grid is not None:
                track_picture(accelerator, "samples", grid, step)
        accelerator.wait_for_everyone()

    def describe(logs: Mapping[str, Tensor]) -> str:
        figures = [f"loss {float(logs['loss']):.3f}", *[f"{name} {value:.3f}" for name, value in shown.items()]]
        return "  ".join(figures)

    return [
        *([cb.FreshStart(config.align.warmup)] if config.align.active and config.align.warmup else []),
        *([cb.MovingAverage(ema, partial(trained_parameters, pair.side.module))] if ema is not None else []),
        cb.Every(log.held_out_every, read_held_out, at_start=True),
        events,
        cb.Every(log.samples_every, draw),
        readings,
        cb.SaveCheckpoints(checkpoints, log.checkpoint_every),
        *([] if quiet else [cb.Progress("train", describe, every=max(log.every, 50))]),
    ]


def _encode(
    config: TrainConfig,
    accelerator: Accelerator,
    pair: Pair,
    data: parts.DataParts,
    say: Callable[[str], None] | None,
) -> tuple[EncodedData, EncodedData]:
    """The main process fills the cache, the others read it; the networks join the encoders, or follow them."""
    device = accelerator.device
    pair.main.to(device, only="encoders")
    with accelerator.main_process_first():
        how = (parts.cache_folder(config), config.data.cache, pair.side.reads, len(config.data.conditions))
        train = EncodedData(data.train, pair.main, data.transform, *how, say)
        held_out = EncodedData(data.held_out, pair.main, parts.still(data.transform), *how)
    pair.main.offload_encoders(offload_to(config, device))
    pair.main.to(device, only="network")
    pair.side.module.to(device).train()
    return train, held_out


def _plan(config: TrainConfig, accelerator: Accelerator, count: int) -> BatchPlan:
    return BatchPlan(count, config.train.batch_size, config.seed, accelerator.process_index, accelerator.num_processes)


def _batches(data: EncodedData, plan: BatchPlan, device: torch.device, workers: int, start: int) -> Iterator[Any]:
    return batches(data, plan, start, device, workers)


def _prepare(accelerator: Accelerator, pair: Pair, aligner: LikelihoodAligner | None) -> Any:
    """Hand both trained modules to accelerate; returns what to call for the alignment."""
    pair.side.callee = accelerator.prepare(pair.side.module)
    # accelerate has patched its forward to answer in fp32 whatever autocast says. The frozen network, kept in half
    # precision, could not take that; autocast is ours (launch.under_autocast).
    module = accelerator.unwrap_model(pair.side.callee, keep_fp32_wrapper=False)
    # What it leaves is the class's own forward, bound to this instance: a copy of the instance would run this one.
    left = getattr(module.__dict__.get("forward"), "__func__", None)
    if left is not None and unwrap(left) is unwrap(type(module).forward):
        del module.__dict__["forward"]
    return None if aligner is None else accelerator.prepare(aligner.to(accelerator.device))


def _moving_average(config: TrainConfig, pair: Pair) -> tuple[Any, Any]:
    """The EMAModel of diffusers if it is on; and a context in which the side network has the weights to give away."""
    from diffusers.training_utils import EMAModel

    module = pair.side.module
    ema = None if config.train.ema is None else EMAModel(trained_parameters(module), decay=config.train.ema)
    return ema, partial(averaged_weights, module, ema)


def _exports(
    results: Results, state: LoopState, aligner: LikelihoodAligner | None, final_weights: Any
) -> dict[str, Any]:
    """What a checkpoint holds beside accelerate's state."""
    from safetensors.torch import save_file

    def side(folder: Path) -> None:
        with final_weights():
            results.save_side(folder, state.step)

    if aligner is None:
        return {"side_network": side}

    def decoder(path: Path) -> None:
        save_file({name: value.contiguous() for name, value in aligner.state_dict().items()}, path)

    return {"side_network": side, "decoder.safetensors": decoder}
