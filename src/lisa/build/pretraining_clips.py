"""``lisa pretrain architecture=svd``: the clips, and the training of a small Stable Video Diffusion on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor

from lisa.build.pretraining_stage import make_training, on_cpu, save_model
from lisa.common.runfolder import RunFolder
from lisa.core.frames import fold
from lisa.data.cache import ArrayCache, cache_key
from lisa.data.scene_sources import MovingScenesSource
from lisa.data.split import held_out_split
from lisa.mains.codec import TemporalDecoderCodec
from lisa.processes.draws import Draws
from lisa.sample.clips import contact_sheet
from lisa.sample.grids import save_png
from lisa.train.averaging import averaged_weights
from lisa.train.batches import BatchPlan
from lisa.train.dataset import modules_hash
from lisa.train.loop import run
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.svd import ClipBatch, ClipStep, SVDDenoiser

_SHOWN, _STEPS = 6, 25  # clips of a sample sheet, and steps of their sampling


@dataclass(frozen=True)
class Clips:
    """Every clip of the data, uint8 (N, F, S, S, 3) on disk; ``rates`` (N,) in frames per second; ``train`` and
    ``held_out`` are indices.
    """

    pixels: np.ndarray
    rates: Tensor
    train: list[int]
    held_out: list[int]
    cache: Path
    fingerprint: str

    def tensor(self, indices: list[int], flip: np.ndarray | None = None) -> Tensor:
        """Clips in -1..1, (B, 3, F, S, S); mirrored where ``flip`` (B,) is true."""
        return _tensor(self.pixels[indices], flip)

    def frames(self, indices: list[int], flip: np.ndarray) -> Tensor:
        """The frames that they begin with, (B, 3, S, S)."""
        return _tensor(self.pixels[indices, :1], flip)[:, :, 0]


def open_clips(config: PretrainConfig) -> list[MovingScenesSource]:
    """Moving scenes of every rate, none of them twice."""
    data = config.data
    bounds = np.linspace(0, data.scenes, len(data.rates) + 1).round().astype(int).tolist()
    return [
        MovingScenesSource(None, config.seed, stop - start, data.size, start, data.frames, rate)
        for rate, start, stop in zip(data.rates, bounds[:-1], bounds[1:], strict=True)
    ]


def load_clips(config: PretrainConfig, sources: list[MovingScenesSource]) -> Clips:
    """Draw every clip once, to a file on disk that both stages and resumed runs share."""
    data, places = config.data, [(source, i) for source in sources for i in range(len(source))]
    fingerprint = cache_key(clips=[source.part_fingerprint("image") for source in sources])

    def draw(part: slice) -> np.ndarray:
        return np.stack([source[i].image for source, i in places[part]])

    shape = (len(places), data.frames, data.size, data.size, 3)
    pixels = ArrayCache(config.out / "cache", fingerprint).get_or_build("clips", shape, np.uint8, draw)
    split = held_out_split([source.keys[i] for source, i in places], data.held_out, config.seed)
    rates = torch.tensor([source.rate for source, _ in places])
    return Clips(pixels, rates, list(split.train), list(split.held_out), config.out / "cache", fingerprint)


class EncodedClips:
    """Batches of clips as scaled latents (posterior means), which are computed once and kept on disk, mirrored ones
    as well.

    Args:
        config: of the pretraining.
        clips: the data.
        vae: frozen.
    """

    def __init__(self, config: PretrainConfig, clips: Clips, vae: Any) -> None:
        self.clips, codec = clips, TemporalDecoderCodec(vae)
        side, data = config.data.size // codec.factor, config.data
        shape = (len(clips.pixels), 2, codec.channels, data.frames, side, side)

        @torch.no_grad()
        def encode(part: slice) -> np.ndarray:
            chosen = list(range(part.start, part.stop))
            flips = [np.full(len(chosen), flip) for flip in (False, True)]
            means = [codec.moments(vae, clips.tensor(chosen, flip)).chunk(2, dim=1)[0] for flip in flips]
            return torch.stack(means, 1).half().numpy()

        key = cache_key(clips=clips.fingerprint, vae=modules_hash([vae]), scaling=codec.scaling)
        self._latents = ArrayCache(clips.cache, key).get_or_build("latents", shape, np.float16, encode)

    def batch(self, indices: list[int], flip: np.ndarray) -> ClipBatch:
        """The clips of these numbers, mirrored where ``flip`` (B,) is true."""
        latents = torch.from_numpy(self._latents[indices, flip.astype(np.int64)]).float()
        return ClipBatch(indices, latents, self.clips.frames(indices, flip), self.clips.rates[indices])


def train_on_clips(config: PretrainConfig, run_folder: RunFolder, clips: Clips, vae: Any) -> Path | None:
    """The second stage; the folder of the finished model, or None if it was interrupted."""
    from diffusers.training_utils import EMAModel

    set_seed(config.seed + 1)
    accelerator, settings = on_cpu(), config.denoiser
    encoded = EncodedClips(config, clips, vae)
    model = SVDDenoiser(config, config.data.size // config.vae.factor)
    step = ClipStep(model, vae.requires_grad_(False), Draws(config.seed), config)
    plan = BatchPlan(len(clips.train), settings.batch_size, config.seed)

    def batches(start: int) -> Iterator[ClipBatch]:
        for number, visits in enumerate(plan.start_at(start), start):
            chosen = [clips.train[visit % plan.count] for visit in visits]
            flip = np.random.default_rng([config.seed, number]).random(len(chosen)) < 0.5 * config.data.flip
            yield encoded.batch(chosen, flip)

    ema = EMAModel(model.parameters(), decay=settings.ema, use_ema_warmup=True, power=0.75)
    held = encoded.batch(clips.held_out, np.zeros(len(clips.held_out), bool))

    @torch.no_grad()
    def show(number: int) -> None:
        with averaged_weights(model, ema):
            error = held_out_error(step, held, settings.batch_size)
            sheet = sample_sheet(model.pipeline(vae), clips, clips.held_out[:_SHOWN])
        run_folder.log(number, "held_out", {"stage": "denoiser", "mse": error})
        save_png(sheet, run_folder.samples / f"step-{number:06d}.png")

    training = make_training(
        config, run_folder, accelerator, "denoiser", model, step, batches, settings, settings.warmup, show, ema
    )
    if not run(training):
        return None
    ema.copy_to(model.parameters())
    final = run_folder.path / "model"
    save_model(config, run_folder, model.eval().pipeline(vae), final)
    return final


def held_out_error(step: ClipStep, held: ClipBatch, together: int) -> float:
    """Mean squared error of F over all held-out clips, always with the same draws."""
    count = len(held.samples)
    parts = [held[first : first + together] for first in range(0, count, together)]
    return sum(float(step(part, 0).logs["mse"]) * len(part.samples) for part in parts) / count


def sample_sheet(pipeline: Any, clips: Clips, indices: list[int]) -> Image.Image:
    """Clips, frame by frame: what is true, and how the model goes on from the first frame."""
    again = [sample_clip(pipeline, clips.pixels[i, 0], float(clips.rates[i]), seed=i) for i in indices]
    return contact_sheet({"truth": list(clips.pixels[indices]), "model": again})


def sample_clip(pipeline: Any, frame: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """A clip that goes on from ``frame`` (uint8, H x W x 3): uint8 (F, H, W, 3), as the stock pipeline makes it."""
    height, width = frame.shape[:2]
    clip = pipeline(
        Image.fromarray(frame),
        height=height,
        width=width,
        fps=rate,
        num_inference_steps=_STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]
    return np.asarray((clip * 255).round().astype(np.uint8))


def frames_of(clips: Clips, count: int) -> Tensor:
    """The frames of the first ``count`` training clips, (B F, 3, S, S)."""
    return fold(clips.tensor(clips.train[:count]))


def some_frames(clips: Tensor, count: int, u: float) -> Tensor:
    """At most ``count`` frames in a row of clips (B, C, F, H, W); where they begin, ``u`` in [0, 1) says."""
    count = min(count, clips.shape[2])
    first = int(u * (clips.shape[2] - count + 1))
    return clips[:, :, first : first + count]


def _tensor(pixels: np.ndarray, flip: np.ndarray | None) -> Tensor:
    """uint8 (B, F, S, S, 3) to (B, 3, F, S, S) in -1..1."""
    if flip is not None:
        pixels = np.where(flip[:, None, None, None, None], pixels[:, :, :, ::-1], pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
