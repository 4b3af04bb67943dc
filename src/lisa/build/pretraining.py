"""``lisa pretrain``: an autoencoder, then a denoiser with its text encoder, then a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from lisa.build.pretraining_data import Pictures, encode_pictures, load_pictures, open_pictures, to_uint8
from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, write_json
from lisa.common.runfolder import RunFolder
from lisa.processes.ddpm import DDPMProcess
from lisa.processes.draws import Draws
from lisa.sample.grids import grid, save_png
from lisa.sample.pictures import fast_scheduler
from lisa.train import callbacks as cb
from lisa.train.averaging import averaged_weights
from lisa.train.batches import BatchPlan
from lisa.train.checkpoint import Checkpoints
from lisa.train.loop import ClipGroup, LoopState, Training, run
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.denoiser import DenoiserStep, LatentBatch, make_unet, scheduler_config
from lisa.train.pretrain.text import make_text_encoder, make_tokenizer
from lisa.train.pretrain.vae import VAEStep, make_vae, set_scaling_factor
from lisa.train.settings import save_settings

_EVERY = 50  # steps between events


def pretrain(config: PretrainConfig) -> Path | None:
    """Run or continue a pretraining; the folder of the finished model, or None if it was interrupted."""
    run_folder = RunFolder(config.out)
    run_folder.check(overwrite=config.overwrite, resume=config.resume)
    if Accelerator().num_processes > 1:
        raise LisaError(
            "lisa pretrain runs in one process", "Start it without accelerate launch; models this small need no more"
        )
    source = open_pictures(config)
    run_folder.open(overwrite=config.overwrite, resume=config.resume)
    save_settings(config, run_folder.config)
    pictures = load_pictures(config, source)
    vae = _train_vae(config, run_folder, pictures)
    if vae is None:
        return None
    return _train_denoiser(config, run_folder, pictures, vae)


def _train_vae(config: PretrainConfig, run_folder: RunFolder, pictures: Pictures) -> Any | None:
    from diffusers import AutoencoderKL

    done = run_folder.path / "vae"
    if done.exists():
        return AutoencoderKL.from_pretrained(done).eval()
    set_seed(config.seed)
    settings = config.vae
    vae = make_vae(settings, config.data.size)
    plan = BatchPlan(len(pictures.train), settings.batch_size, config.seed)

    def batches(start: int) -> Iterator[Tensor]:
        for number, visits in enumerate(plan.start_at(start), start):
            flip = np.random.default_rng([config.seed, number]).random(len(visits)) < 0.5 * config.data.flip
            yield pictures.tensor([pictures.train[visit % plan.count] for visit in visits], flip)

    def show(step: int) -> None:
        truth = pictures.tensor(pictures.held_out[:16])
        with torch.no_grad():
            again = vae(truth).sample
        error = float((again - truth).square().mean())
        run_folder.log(step, "held_out_vae", {"stage": "vae", "psnr": -10 * np.log10(error / 4)})
        both = [to_uint8(image) for pair in zip(truth, again, strict=True) for image in pair]
        save_png(grid(both, 8), run_folder.samples / f"vae-{step:06d}.png")

    training = _training(
        config,
        run_folder,
        Accelerator(),
        "vae",
        vae,
        VAEStep(vae, settings.kl_weight, settings.bf16),
        batches,
        settings,
        0,
        show,
    )
    if not run(training):
        return None
    vae.eval()
    set_scaling_factor(vae, pictures.tensor(pictures.train[:1024]))
    with atomic_dir(done) as folder:
        vae.save_pretrained(folder)
    return vae


def _train_denoiser(config: PretrainConfig, run_folder: RunFolder, pictures: Pictures, vae: Any) -> Path | None:
    from diffusers.training_utils import EMAModel

    set_seed(config.seed + 1)
    accelerator = Accelerator()
    settings = config.denoiser
    tokenizer = make_tokenizer(pictures.captions, config.text)
    latents, size = encode_pictures(config, pictures, vae), config.data.size // config.vae.factor
    model = torch.nn.ModuleDict(
        {
            "unet": make_unet(settings, config.vae.latent_channels, size, config.text.hidden),
            "text_encoder": make_text_encoder(tokenizer, config.text),
        }
    )
    tokens = _tokens(tokenizer, pictures.captions)
    process, draws = DDPMProcess(scheduler_config(settings.prediction)), Draws(config.seed)
    step = DenoiserStep(
        torch.compile(model["unet"]) if settings.compile else model["unet"],
        model["text_encoder"],
        process,
        draws,
        _tokens(tokenizer, [""]),
        settings,
    )
    plan = BatchPlan(len(pictures.train), settings.batch_size, config.seed)

    def batches(start: int) -> Iterator[LatentBatch]:
        for number, visits in enumerate(plan.start_at(start), start):
            chosen = [pictures.train[visit % plan.count] for visit in visits]
            flip = np.random.default_rng([config.seed, number]).random(len(chosen)) < 0.5 * config.data.flip
            yield LatentBatch(chosen, latents(chosen, flip), tokens[chosen])

    ema = EMAModel(model.parameters(), decay=settings.ema, use_ema_warmup=True, power=0.75)
    held = pictures.held_out
    held_batch = LatentBatch(held, latents(held, np.zeros(len(held), bool)), tokens[held])

    @torch.no_grad()
    def show(number: int) -> None:
        plain = DenoiserStep(model["unet"], model["text_encoder"], process, draws, _tokens(tokenizer, [""]), settings)
        captions = [pictures.captions[i] for i in held[:64]]
        with averaged_weights(model, ema):
            mse = float(plain(held_batch, 0).logs["mse"])
            samples = sample_pictures(_pipeline(vae, tokenizer, model, settings), captions)
        run_folder.log(number, "held_out", {"stage": "denoiser", "mse": mse})
        save_png(grid(samples, 8), run_folder.samples / f"step-{number:06d}.png")

    training = _training(
        config, run_folder, accelerator, "denoiser", model, step, batches, settings, settings.warmup, show, ema
    )
    if not run(training):
        return None
    ema.copy_to(model.parameters())
    final = run_folder.path / "model"
    _save_model(config, run_folder, _pipeline(vae, tokenizer, model.eval(), settings), final)
    return final


def _training(
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


def _tokens(tokenizer: Any, captions: list[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def _pipeline(vae: Any, tokenizer: Any, model: Any, settings: Any) -> Any:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=DDPMScheduler.from_config(scheduler_config(settings.prediction)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sample_pictures(pipeline: Any, captions: list[str], *, steps: int = 25, guidance: float = 3.0) -> list[np.ndarray]:
    """One picture per caption, uint8 (H, W, 3), with DPM-Solver++ and a seed per picture."""
    fast_scheduler(pipeline)
    generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    images = pipeline(
        captions, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    return list((images * 255).round().astype(np.uint8))


def _save_model(config: PretrainConfig, run_folder: RunFolder, pipeline: Any, final: Path) -> None:
    if config.half_weights:
        pipeline.unet.half()
        pipeline.vae.half()
    with atomic_dir(final) as folder:
        pipeline.save_pretrained(folder)
    curve = [
        {name: event[name] for name in ("step", "kind", "mse", "psnr") if name in event}
        for event in run_folder.read_events()
        if event["kind"].startswith("held_out")
    ]
    write_json(run_folder.summary, {"config": json.loads(config.model_dump_json()), "held_out": curve})
