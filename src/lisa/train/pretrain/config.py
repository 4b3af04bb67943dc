"""What can be set for ``lisa pretrain``: a small Stable Diffusion, 1 or 3, made from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lisa.train.settings import Settings


class PretrainData(Settings):
    """The pictures and their captions."""

    folder: Path | None = Field(None, description="Folder of captioned images; empty: procedural scenes.")
    scenes: int = Field(40_000, ge=64, description="Number of procedural scenes, where no folder is given.")
    size: int = Field(64, ge=16, multiple_of=8, description="Side of the square pictures, in pixels.")
    held_out: int = Field(512, ge=8, description="Pictures kept apart for the held-out loss.")
    flip: bool = Field(True, description="Also train on the mirrored pictures.")


class VAESettings(Settings):
    """The autoencoder: AutoencoderKL."""

    init: str | None = Field(
        None, description="An AutoencoderKL to use as it is: a folder, or an embedded model; empty: one is trained."
    )
    channels: tuple[int, ...] = Field((24, 48, 64), description="Channels per resolution; each after the first halves.")
    layers: int = Field(1, ge=1, description="Residual blocks per resolution.")
    groups: int = Field(8, ge=1, description="Groups of the group normalisation.")
    latent_channels: int = Field(4, ge=1, description="Channels of the latent.")
    steps: int = Field(2_500, ge=1, description="Training steps.")
    batch_size: int = Field(16, ge=1, description="Pictures per step.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate (cosine decay).")
    kl_weight: float = Field(5e-4, ge=0, description="Weight of the KL divergence, mean per latent value, in nats.")
    bf16: bool = Field(True, description="Autocast to bfloat16 (1.8 times as fast on a CPU with AVX-512 BF16).")

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.channels) - 1))


class TextSettings(Settings):
    """The text encoders, trained together with the denoiser: CLIP, and for sd3 another CLIP and a T5."""

    hidden: int = Field(96, ge=8, description="Width of the text states (each of two CLIP encoders has half of it).")
    layers: int = Field(2, ge=1, description="Transformer layers.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    length: int = Field(48, ge=8, description="Longest caption, in tokens.")
    vocabulary: int = Field(2_000, ge=520, description="Largest vocabulary of the tokenizer.")


class UNetSettings(Settings):
    """The UNet (UNet2DConditionModel), where ``architecture`` is unet."""

    channels: tuple[int, ...] = Field((64, 96, 112), description="Channels per resolution.")
    attention: tuple[bool, ...] = Field((False, True, False), description="Cross-attention per resolution.")
    layers: int = Field(2, ge=1, description="Residual blocks per resolution.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    groups: int = Field(16, ge=1, description="Groups of the group normalisation.")
    prediction: Literal["epsilon", "v_prediction"] = Field("epsilon", description="What the UNet predicts.")
    snr_gamma: float | None = Field(5.0, gt=0, description="Min-SNR loss weighting; empty: none.")

    @model_validator(mode="after")
    def _one_flag_per_resolution(self) -> UNetSettings:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"attention needs {len(self.channels)} flags, one per entry of channels")
        return self


class TransformerSettings(Settings):
    """The flow transformer (SD3Transformer2DModel), where ``architecture`` is sd3."""

    heads: int = Field(5, ge=1, description="Attention heads.")
    head_width: int = Field(32, ge=8, multiple_of=8, description="Channels per head.")
    layers: int = Field(6, ge=2, description="Transformer blocks.")
    patch: int = Field(2, ge=1, description="Latent cells per token, along one side.")
    shift: float = Field(1.0, gt=0, description="Timestep shift, in training and sampling.")
    long_captions: float = Field(
        0.125, ge=0, le=1, description="Share of steps with captions padded to the 256 tokens of diffusers' pipeline."
    )


class DenoiserSettings(Settings):
    """The training of the UNet or transformer, with its text encoders."""

    steps: int = Field(10_000, ge=1, description="Training steps.")
    batch_size: int = Field(32, ge=1, description="Pictures per step.")
    learning_rate: float = Field(8e-4, gt=0, description="Peak learning rate (warm-up, then cosine decay).")
    warmup: int = Field(200, ge=0, description="Warm-up steps.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the exponential average that is saved.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of captions replaced by the empty one.")
    bf16: bool = Field(False, description="Autocast to bfloat16.")


class PretrainConfig(Settings):
    """Everything that can be set for ``lisa pretrain``."""

    out: Path = Field(Path("runs/pretrain"), description="Run folder; the model is written to OUT/model.")
    seed: int = Field(0, ge=0, description="Seed of everything.")
    data: PretrainData = Field(default_factory=PretrainData, description="Pictures and captions.")
    vae: VAESettings = Field(default_factory=VAESettings, description="Autoencoder.")
    text: TextSettings = Field(default_factory=TextSettings, description="Text encoders.")
    architecture: Literal["unet", "sd3"] = Field("unet", description="The denoiser: a UNet, or SD3's flow transformer.")
    unet: UNetSettings = Field(default_factory=UNetSettings, description="The UNet.")
    transformer: TransformerSettings = Field(default_factory=TransformerSettings, description="The transformer.")
    denoiser: DenoiserSettings = Field(default_factory=DenoiserSettings, description="Training of the denoiser.")
    half_weights: bool = Field(True, description="Store VAE and denoiser weights as float16 (they load as float32).")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    samples_every: int = Field(1_000, ge=1, description="Steps between sample grids and held-out losses.")
    resume: bool = Field(False, description="Continue from the last checkpoint.")
    overwrite: bool = Field(False, description="Replace an earlier run in OUT.")

    @model_validator(mode="after")
    def _size_fits(self) -> PretrainConfig:
        cells = 2 ** (len(self.unet.channels) - 1) if self.architecture == "unet" else self.transformer.patch
        factor = self.vae.factor * cells
        if self.data.size % factor:
            raise ValueError(f"data.size must be a multiple of {factor} for this VAE and denoiser: {self.data.size}")
        return self
