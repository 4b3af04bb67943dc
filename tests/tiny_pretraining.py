"""Pretrainings that take seconds."""

from __future__ import annotations

import torch

from lisa.train.callbacks import Callback
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.pretrain.svd import ClipBatch, SVDDenoiser
from lisa.train.pretrain.vae import make_temporal_vae
from lisa.train.settings import check_settings

SMALL = {
    "data": {"scenes": 64, "held_out": 8, "size": 32},
    "vae": {"steps": 2, "batch_size": 4, "channels": [8, 8, 8], "groups": 4},
    "text": {"hidden": 16, "layers": 1, "heads": 2},
    "unet": {"channels": [8, 8], "attention": [False, True], "heads": 2, "groups": 4, "layers": 1},
    "denoiser": {"steps": 4, "batch_size": 4, "warmup": 1},
    "samples_every": 100,
    "checkpoint_every": 2,
}


def config(out, **changes):
    raw = {name: dict(value) if isinstance(value, dict) else value for name, value in SMALL.items()}
    for name, value in changes.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return check_settings(PretrainConfig, {**raw, "out": out})


class StopAt(Callback):
    """Asks for the end after ``step`` steps."""

    def __init__(self, step):
        self.step = step

    def after_step(self, training, logs):
        training.stop.requested = training.state.step >= self.step


#: The least that a small Stable Video Diffusion can be: norms have 32 groups.
VIDEO = {
    "architecture": "svd",
    "data": {"scenes": 64, "held_out": 8, "size": 16, "frames": 3, "rates": [6.0, 12.0]},
    "vae": {"steps": 2, "decoder_steps": 2, "batch_size": 2, "channels": [32, 32], "groups": 32},
    "video": {
        "channels": [32, 64],
        "attention": [False, True],
        "heads": 2,
        "image_width": 8,
        "image_layers": 1,
        "image_patch": 56,
    },
    "denoiser": {"steps": 4, "batch_size": 2, "warmup": 1},
    "samples_every": 100,
    "checkpoint_every": 2,
}


def video_config(out, **changes):
    raw = {
        name: VIDEO[name] | changes.pop(name, {}) if isinstance(VIDEO[name], dict) else VIDEO[name] for name in VIDEO
    }
    return check_settings(PretrainConfig, {**raw, **changes, "out": out})


def denoiser(video=None, **changes):
    torch.manual_seed(0)
    config = video_config("unused", video=video or {}, **changes)
    model = SVDDenoiser(config, latent_size=8)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model, config


def vae_of(config):
    torch.manual_seed(1)
    return make_temporal_vae(config.vae, config.data.size).eval()


def batch_of(count=2, frames=3):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator) / 127.5 - 1
    latents = torch.randn(count, 4, frames, 8, 8, generator=generator)
    return ClipBatch(list(range(count)), latents, pixels, torch.tensor([6.0, 12.0, 8.0, 7.0])[:count])
