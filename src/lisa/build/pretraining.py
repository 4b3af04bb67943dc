"""``lisa pretrain``: an autoencoder, then a denoiser with its text encoder, then a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from lisa import zoo
from lisa.build.pretraining_clips import Clips, frames_of, load_clips, open_clips, some_frames, train_on_clips
from lisa.build.pretraining_data import Pictures, encode_pictures, load_pictures, open_pictures, to_uint8
from lisa.build.pretraining_stage import make_training, on_cpu, save_model
from lisa.common.errors import LisaError
from lisa.common.files import atomic_dir
from lisa.common.model_folders import first_line
from lisa.common.runfolder import RunFolder
from lisa.core.frames import fold
from lisa.mains.codec import KLCodec
from lisa.processes.draws import Draws
from lisa.sample.grids import grid, save_png
from lisa.sample.pictures import set_solver
from lisa.train.averaging import averaged_weights
from lisa.train.batches import BatchPlan
from lisa.train.loop import run
from lisa.train.pretrain.config import PretrainConfig, VAESettings
from lisa.train.pretrain.denoiser import DenoiserStep, LatentBatch, make_denoiser
from lisa.train.pretrain.vae import VAEStep, make_temporal_vae, make_vae, reconstruct, set_scaling
from lisa.train.settings import save_settings

#: Share of the steps after which the autoencoder of clips sees whole ones: its decoder takes the frames together, and
#: does badly on more of them than it has seen.
_WHOLE = 0.75


def pretrain(config: PretrainConfig) -> Path | None:
    """Run or continue a pretraining; the folder of the finished model, or None if it was interrupted."""
    run_folder = RunFolder(config.out)
    run_folder.check(overwrite=config.overwrite, resume=config.resume)
    if on_cpu().num_processes > 1:
        raise LisaError(
            "lisa pretrain runs in one process", "Start it without accelerate launch; models this small need no more"
        )
    video = config.architecture == "svd"
    clips, source = (open_clips(config), None) if video else (None, open_pictures(config))
    given = None if config.vae.init is None else _load_vae(config)
    with run_folder.locked():
        run_folder.open(overwrite=config.overwrite, resume=config.resume)
        return _pretrain(config, run_folder, clips, source, given)


def _pretrain(config: PretrainConfig, run_folder: RunFolder, clips: Any, source: Any, given: Any) -> Path | None:
    """The autoencoder, or the ``given`` one, and the denoiser of its latents."""
    save_settings(config.model_copy(update={"resume": False, "overwrite": False}), run_folder.config)
    data = load_clips(config, clips) if clips is not None else load_pictures(config, source)
    vae = given if given is not None else _train_vae(config, run_folder, data)
    if vae is None:
        return None
    if isinstance(data, Clips):
        set_scaling(vae, frames_of(data, 128), shifted=False)
        return train_on_clips(config, run_folder, data, vae)
    set_scaling(vae, data.tensor(data.train[:1024]), shifted=config.architecture == "sd3")
    return _train_denoiser(config, run_folder, data, vae)


def _train_vae(config: PretrainConfig, run_folder: RunFolder, data: Pictures | Clips) -> Any | None:
    done = run_folder.path / "vae"
    if done.exists():
        return _autoencoder(config).from_pretrained(done).eval()
    set_seed(config.seed)
    settings, make = config.vae, make_temporal_vae if isinstance(data, Clips) else make_vae
    vae = make(settings, config.data.size)
    if not _train_stage("vae", vae, vae, config, settings, run_folder, data):
        return None
    if settings.decoder_steps:
        half = {"steps": settings.decoder_steps, "learning_rate": settings.learning_rate / 2}
        vae.requires_grad_(False).decoder.requires_grad_(True)
        alone = settings.model_copy(update=half)
        if not _train_stage("decoder", vae, vae.decoder, config, alone, run_folder, data, whole_from=0.0):
            return None
        vae.requires_grad_(True)
    with atomic_dir(done) as folder:
        vae.eval().save_pretrained(folder)
    return vae


def _train_stage(
    label: str,
    vae: Any,
    trained: torch.nn.Module,
    config: PretrainConfig,
    settings: VAESettings,
    run_folder: RunFolder,
    data: Pictures | Clips,
    whole_from: float = _WHOLE,
) -> bool:
    """Train the autoencoder, or the part of it that is ``trained``; false if it was interrupted."""
    plan = BatchPlan(len(data.train), settings.batch_size, config.seed)
    shown = data.held_out[:2] if isinstance(data, Clips) else data.held_out[:16]

    def batches(start: int) -> Iterator[Tensor]:
        for number, visits in enumerate(plan.start_at(start), start):
            draws = np.random.default_rng([config.seed, number])
            flip = draws.random(len(visits)) < 0.5 * config.data.flip
            indices = [data.train[visit % plan.count] for visit in visits]
            if settings.frames is None:
                yield data.tensor(indices, flip)
            elif number < whole_from * settings.steps:
                yield some_frames(data.tensor(indices, flip), settings.frames, draws.random())
            else:  # as many frames as before
                few = max(1, len(indices) * settings.frames // config.data.frames)
                yield data.tensor(indices[:few], flip[:few])

    def show(step: int) -> None:
        truth = data.tensor(shown)
        with torch.no_grad():
            again = reconstruct(vae, truth, noise=False)[1]
        error = float((again - truth).square().mean())
        run_folder.log(step, f"held_out_{label}", {"stage": label, "psnr": -10 * np.log10(error / 4)})
        both = [to_uint8(image) for pair in zip(fold(truth), fold(again), strict=True) for image in pair]
        save_png(grid(both, 8), run_folder.samples / f"{label}-{step:06d}.png")

    step = VAEStep(vae, settings.kl_weight, settings.bf16)
    return run(make_training(config, run_folder, on_cpu(), label, trained, step, batches, settings, 0, show))


def _load_vae(config: PretrainConfig) -> Any:
    """An existing autoencoder.

    Raises:
        LisaError: it cannot be loaded, or is not what ``vae`` describes.
    """
    source, kind = str(config.vae.init), _autoencoder(config)
    folder = Path(zoo.path(source)) / "vae" if source in zoo.names() else Path(source)
    try:
        found = kind.load_config(folder, local_files_only=folder.is_dir()).get("_class_name")
        if found != kind.__name__:  # diffusers would fill in random weights
            raise TypeError(f"it is an {found}, not an {kind.__name__}")
        vae = kind.from_pretrained(folder, local_files_only=folder.is_dir()).float().eval()
    except Exception as error:  # many kinds; all mean: this cannot be loaded
        raise LisaError(
            f"the VAE {source!r} cannot be loaded: {first_line(error)}",
            f"Give vae.init a folder of an {kind.__name__}, or the name of an embedded model with one",
            zoo.names(),
        ) from error
    codec = KLCodec(vae)
    if (codec.factor, codec.channels) != (config.vae.factor, config.vae.latent_channels):
        raise LisaError(
            f"the VAE {source!r} has factor {codec.factor} and {codec.channels} latent channels; the configuration "
            f"says {config.vae.factor} and {config.vae.latent_channels}",
            "Set vae.channels and vae.latent_channels as the VAE has them",
        )
    vae.register_to_config(_name_or_path=source)  # saved with the model: the name, not where it lies on this machine
    return vae


def _autoencoder(config: PretrainConfig) -> Any:
    """The class of diffusers."""
    import diffusers

    return diffusers.AutoencoderKLTemporalDecoder if config.architecture == "svd" else diffusers.AutoencoderKL


def _train_denoiser(config: PretrainConfig, run_folder: RunFolder, pictures: Pictures, vae: Any) -> Path | None:
    from diffusers.training_utils import EMAModel

    set_seed(config.seed + 1)
    accelerator = on_cpu()
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

    training = make_training(
        config, run_folder, accelerator, "denoiser", model, step, batches, settings, settings.warmup, show, ema
    )
    if not run(training):
        return None
    ema.copy_to(model.parameters())
    final = run_folder.path / "model"
    save_model(config, run_folder, model.eval().pipeline(vae), final)
    return final


def sample_pictures(pipeline: Any, captions: list[str], *, steps: int = 25, guidance: float = 3.0) -> list[np.ndarray]:
    """One picture per caption, uint8 (H, W, 3), with DPM-Solver++ and a seed per picture."""
    set_solver(pipeline)
    generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    images = pipeline(
        captions, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    return list((images * 255).round().astype(np.uint8))
