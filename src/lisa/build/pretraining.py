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

from lisa import zoo
from lisa.build.pretraining_data import Pictures, encode_pictures, load_pictures, open_pictures, to_uint8
from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir, write_json
from lisa.common.model_folders import first_line
from lisa.common.runfolder import RunFolder
from lisa.mains.codec import KLCodec
from lisa.processes.draws import Draws
from lisa.sample.grids import grid, save_png
from lisa.sample.pictures import fast_scheduler
from lisa.train import callbacks as cb
from lisa.train.averaging import averaged_weights
from lisa.train.batches import BatchPlan
from lisa.train.checkpoint import Checkpoints
from lisa.train.loop import ClipGroup, LoopState, Training, run
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.denoiser import DenoiserStep, LatentBatch, make_denoiser
from lisa.train.pretrain.vae import VAEStep, make_vae, set_scaling
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
    given = None if config.vae.init is None else _load_vae(config)
    run_folder.open(overwrite=config.overwrite, resume=config.resume)
    save_settings(config, run_folder.config)
    pictures = load_pictures(config, source)
    vae = given if given is not None else _train_vae(config, run_folder, pictures)
    if vae is None:
        return None
    set_scaling(vae, pictures.tensor(pictures.train[:1024]), shifted=config.architecture == "sd3")
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
    with atomic_dir(done) as folder:
        vae.eval().save_pretrained(folder)
    return vae


def _load_vae(config: PretrainConfig) -> Any:
    """An existing autoencoder.

    Raises:
        LisaError: it cannot be loaded, or is not what ``vae`` describes.
    """
    from diffusers import AutoencoderKL

    source = str(config.vae.init)
    folder = Path(zoo.path(source)) / "vae" if source in zoo.names() else Path(source)
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=folder.is_dir()).float().eval()
    except Exception as error:  # many kinds; all mean: this cannot be loaded
        raise LisaError(
            f"the VAE {source!r} cannot be loaded: {first_line(error)}",
            "Give vae.init a folder of an AutoencoderKL, or the name of an embedded model",
            zoo.names(),
        ) from error
    codec = KLCodec(vae)
    found = (codec.factor, codec.channels)
    if found != (config.vae.factor, config.vae.latent_channels):
        raise LisaError(
            f"the VAE {source!r} has factor {found[0]} and {found[1]} latent channels; the configuration says "
            f"{config.vae.factor} and {config.vae.latent_channels}",
            "Set vae.channels and vae.latent_channels as the VAE has them",
        )
    vae.register_to_config(_name_or_path=source)  # saved with the model: the name, not where it lies on this machine
    return vae


def _train_denoiser(config: PretrainConfig, run_folder: RunFolder, pictures: Pictures, vae: Any) -> Path | None:
    from diffusers.training_utils import EMAModel

    set_seed(config.seed + 1)
    accelerator = Accelerator()
    settings = config.denoiser
    latents, size = encode_pictures(config, pictures, vae), config.data.size // config.vae.factor
    model = make_denoiser(config, pictures.captions, size)
    tokens, draws = model.tokens(pictures.captions), Draws(config.seed)
    step = DenoiserStep(model, draws, settings, snr_gamma=config.unet.snr_gamma)
    plan = BatchPlan(len(pictures.train), settings.batch_size, config.seed)

    def batches(start: int) -> Iterator[LatentBatch]:
        for number, visits in enumerate(plan.start_at(start), start):
            chosen = [pictures.train[visit % plan.count] for visit in visits]
            flip = np.random.default_rng([config.seed, number]).random(len(chosen)) < 0.5 * config.data.flip
            yield LatentBatch(chosen, latents(chosen, flip), {name: ids[chosen] for name, ids in tokens.items()})

    ema = EMAModel(model.parameters(), decay=settings.ema, use_ema_warmup=True, power=0.75)
    held = pictures.held_out
    held_tokens = {name: ids[held] for name, ids in tokens.items()}
    held_batch = LatentBatch(held, latents(held, np.zeros(len(held), bool)), held_tokens)

    @torch.no_grad()
    def show(number: int) -> None:
        captions = [pictures.captions[i] for i in held[:64]]
        with averaged_weights(model, ema):
            mse = float(step(held_batch, 0).logs["mse"])
            samples = sample_pictures(model.pipeline(vae), captions)
        run_folder.log(number, "held_out", {"stage": "denoiser", "mse": mse})
        save_png(grid(samples, 8), run_folder.samples / f"step-{number:06d}.png")

    training = _training(
        config, run_folder, accelerator, "denoiser", model, step, batches, settings, settings.warmup, show, ema
    )
    if not run(training):
        return None
    ema.copy_to(model.parameters())
    final = run_folder.path / "model"
    _save_model(config, run_folder, model.eval().pipeline(vae), final)
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
        for network in (getattr(pipeline, "unet", None), getattr(pipeline, "transformer", None), pipeline.vae):
            if network is not None:
                network.half()
    with atomic_dir(final) as folder:
        pipeline.save_pretrained(folder)
    curve = [
        {name: event[name] for name in ("step", "kind", "mse", "psnr") if name in event}
        for event in run_folder.read_events()
        if event["kind"].startswith("held_out")
    ]
    write_json(run_folder.summary, {"config": json.loads(config.model_dump_json()), "held_out": curve})
