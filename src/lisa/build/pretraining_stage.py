"""What the stages of ``lisa pretrain`` have in common: a training, and how a model is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lisa.common.files import atomic_dir, read_json, write_json
from lisa.common.runfolder import RunFolder
from lisa.train import callbacks as cb
from lisa.train.checkpoint import Checkpoints
from lisa.train.loop import ClipGroup, LoopState, Training
from lisa.train.pretrain.config import PretrainConfig

_EVERY = 50  # steps between events


def on_cpu() -> Accelerator:
    """For one stage. These networks are small: they, their batches and their samples stay on the CPU, also where there
    is a GPU.
    """
    return Accelerator(cpu=True)


def make_training(
    config: PretrainConfig,
    run_folder: RunFolder,
    accelerator: Accelerator,
    label: str,
    model: torch.nn.Module,
    step: Any,
    batches: Callable[[int], Iterator[Any]],
    settings: Any,
    warmup: int,
    show: Callable[[int], None],
    ema: Any = None,
) -> Training:
    """A training of either stage; its checkpoints lie in a folder of their own."""
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=warmup, num_training_steps=settings.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = LoopState()
    accelerator.register_for_checkpointing(state, scheduler, *([ema] if ema is not None else []))
    stage = RunFolder(run_folder.path / "stages" / label)
    checkpoints = Checkpoints(stage, accelerator, {}, limit=1)
    latest = checkpoints.find("latest")
    if latest is not None:
        checkpoints.load(latest)
        run_folder.log(state.step, "resumed", {"stage": label})

    def describe(logs: Mapping[str, Tensor]) -> str:
        return f"loss {float(logs['loss']):.4f}"

    model.train()
    return Training(
        accelerator=accelerator,
        step=step,
        batches=batches,
        modules=[model],
        optimizer=optimizer,
        scheduler=scheduler,
        total_steps=settings.steps,
        clip={"model": ClipGroup(list(model.parameters()), 1.0)},
        callbacks=[
            *([cb.MovingAverage(ema, model.parameters)] if ema is not None else []),
            cb.EventLog(run_folder, _EVERY, lambda: {"stage": label}),
            cb.Progress(label, describe),
            cb.Every(config.samples_every, show),
            cb.SaveCheckpoints(checkpoints, config.checkpoint_every),
        ],
        state=state,
    )


def save_model(config: PretrainConfig, run_folder: RunFolder, pipeline: Any, final: Path) -> None:
    """Write the pipeline to ``final``, and what was held out to the run's summary."""
    if config.half_weights:
        for network in (getattr(pipeline, "unet", None), getattr(pipeline, "transformer", None), pipeline.vae):
            if network is not None:
                network.half()
    with atomic_dir(final) as folder:
        pipeline.save_pretrained(folder)
        name_image_processors(folder)
    curve = [
        {name: event[name] for name in ("step", "kind", "mse", "psnr") if name in event}
        for event in run_folder.read_events()
        if event["kind"].startswith("held_out")
    ]
    write_json(run_folder.summary, {"config": json.loads(config.model_dump_json()), "held_out": curve})


def name_image_processors(folder: Path) -> None:
    """Name image processors in a pipeline's folder as published folders do.

    transformers 5 makes one by another class where torchvision is not installed; transformers 4 does not know its name.
    """
    file = folder / "model_index.json"
    index = read_json(file)
    for entry in index.values():
        if isinstance(entry, list) and entry[0] == "transformers":
            entry[1] = entry[1].removesuffix("Pil")
    write_json(file, index)
