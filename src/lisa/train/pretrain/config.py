"""What can be set for ``lisa pretrain``: a small Stable Diffusion, 1, 3 or Video, made from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lisa.train.settings import Settings

#: What is otherwise than stated below where ``architecture`` is svd: clips cost as many pictures as they have frames,
#: and the networks of diffusers have 32 groups in every normalisation.
SVD_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"scenes": 12_000, "size": 32, "held_out": 128},
    "vae": {
        "channels": (64, 64),
        "groups": 32,
        "batch_size": 12,
        "frames": 3,
        "decoder_steps": 800,
        "learning_rate": 1e-3,
    },
    "denoiser": {"batch_size": 8},
}
_GROUPS = 32  # of the temporal networks


class PretrainData(Settings):
    """The pictures and their captions; for svd clips of moving scenes."""

    folder: Path | None = Field(None, description="Folder of captioned images; empty: procedural scenes.")
    scenes: int = Field(
        40_000, ge=64, description="Number of procedural scenes, where no folder is given (svd: 12000 moving ones)."
    )
    size: int = Field(64, ge=16, multiple_of=8, description="Side of the square pictures, in pixels (svd: 32).")
    held_out: int = Field(512, ge=8, description="Pictures or clips kept apart for the held-out loss (svd: 128).")
    flip: bool = Field(True, description="Also train on the mirrored pictures.")
    frames: int = Field(8, ge=2, description="Frames of a clip (svd).")
    rates: tuple[float, ...] = Field(
        (6.0, 7.0, 8.0, 12.0), min_length=1, description="Frames per second; as many clips of each (svd)."
    )

    @model_validator(mode="after")
    def _rates_are_positive(self) -> PretrainData:
        if min(self.rates) <= 0:
            raise ValueError(f"rates must be above 0: {list(self.rates)}")
        return self


class VAESettings(Settings):
    """The autoencoder: AutoencoderKL, for svd AutoencoderKLTemporalDecoder."""

    init: str | None = Field(
        None, description="An autoencoder to use as it is: a folder, or an embedded model; empty: one is trained."
    )
    channels: tuple[int, ...] = Field(
        (24, 48, 64), description="Channels per resolution; each after the first halves (svd: [64, 64])."
    )
    layers: int = Field(1, ge=1, description="Residual blocks per resolution.")
    groups: int = Field(8, ge=1, description="Groups of the group normalisation (svd: always 32).")
    latent_channels: int = Field(4, ge=1, description="Channels of the latent.")
    steps: int = Field(2_500, ge=1, description="Training steps.")
    batch_size: int = Field(16, ge=1, description="Pictures per step (svd: 12 clips).")
    frames: int | None = Field(
        None,
        ge=1,
        description="Most frames in a row of a clip that a step sees (svd: 3: one of them lies between two others, and "
        "a step sees more clips than if they were whole).",
    )
    decoder_steps: int = Field(
        0,
        ge=0,
        description="Of clips, further steps of the decoder alone at half the learning rate: it takes whole clips, the "
        "encoder single frames (svd: 800).",
    )
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate (cosine decay; svd: 1e-3).")
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


class VideoSettings(Settings):
    """The UNet over space and time (UNetSpatioTemporalConditionModel) and its image encoder, for svd."""

    channels: tuple[int, ...] = Field((64, 96, 96), description="Channels per resolution, multiples of 32.")
    attention: tuple[bool, ...] = Field(
        (False, True, False), description="Attention per resolution, within frames and between them."
    )
    layers: int = Field(1, ge=1, description="Residual blocks per resolution.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    image_width: int = Field(64, ge=8, description="Width of the image encoder (CLIPVisionModelWithProjection).")
    image_layers: int = Field(2, ge=1, description="Layers of the image encoder.")
    image_patch: int = Field(28, ge=7, le=112, description="Its patches, in pixels of the 224x224 that it is given.")
    log_sigma: tuple[float, float] = Field(
        (0.0, 1.5), description="Mean and deviation of the logarithm of the noise levels of training."
    )
    augmentation: tuple[float, float] = Field(
        (-3.9, 0.5),
        description="Mean and deviation of the logarithm of the noise on the conditioning frame; diffusers' pipeline "
        "adds 0.02 unless told otherwise, the median here.",
    )

    @model_validator(mode="after")
    def _networks_fit(self) -> VideoSettings:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"attention needs {len(self.channels)} flags, one per entry of channels")
        if any(channels % _GROUPS or channels % self.heads for channels in self.channels):
            raise ValueError(f"channels must be multiples of {_GROUPS} and of heads: {list(self.channels)}")
        if self.image_width % (2 * self.heads):
            raise ValueError(f"image_width must be a multiple of twice the heads: {self.image_width}")
        for name in ("log_sigma", "augmentation"):
            if getattr(self, name)[1] <= 0:
                raise ValueError(f"the deviation in {name} must be above 0: {list(getattr(self, name))}")
        return self


class DenoiserSettings(Settings):
    """The training of the UNet or transformer, with its encoders of text or pictures."""

    steps: int = Field(10_000, ge=1, description="Training steps.")
    batch_size: int = Field(32, ge=1, description="Pictures per step (svd: 8 clips).")
    learning_rate: float = Field(8e-4, gt=0, description="Peak learning rate (warm-up, then cosine decay).")
    warmup: int = Field(200, ge=0, description="Warm-up steps.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the exponential average that is saved.")
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of captions replaced by the empty one; for svd, of frames by zeros."
    )
    bf16: bool = Field(False, description="Autocast to bfloat16.")


class PretrainConfig(Settings):
    """Everything that can be set for ``lisa pretrain``."""

    out: Path = Field(Path("runs/pretrain"), description="Run folder; the model is written to OUT/model.")
    seed: int = Field(0, ge=0, description="Seed of everything.")
    data: PretrainData = Field(default_factory=PretrainData, description="Pictures and captions.")
    vae: VAESettings = Field(default_factory=VAESettings, description="Autoencoder.")
    text: TextSettings = Field(default_factory=TextSettings, description="Text encoders.")
    architecture: Literal["unet", "sd3", "svd"] = Field(
        "unet", description="The denoiser: a UNet, SD3's flow transformer, or SVD's UNet over space and time."
    )
    unet: UNetSettings = Field(default_factory=UNetSettings, description="The UNet.")
    transformer: TransformerSettings = Field(default_factory=TransformerSettings, description="The transformer.")
    video: VideoSettings = Field(default_factory=VideoSettings, description="SVD's networks.")
    denoiser: DenoiserSettings = Field(default_factory=DenoiserSettings, description="Training of the denoiser.")
    half_weights: bool = Field(True, description="Store VAE and denoiser weights as float16 (they load as float32).")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    samples_every: int = Field(1_000, ge=1, description="Steps between sample grids and held-out losses.")
    resume: bool = Field(False, description="Continue from the last checkpoint.")
    overwrite: bool = Field(False, description="Replace an earlier run in OUT.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_svd(cls, raw: Any) -> Any:
        """Fill in :data:`SVD_DEFAULTS`."""
        if not isinstance(raw, dict) or raw.get("architecture") != "svd":
            return raw
        sections = {name: raw.get(name, {}) for name in SVD_DEFAULTS}
        return raw | {name: SVD_DEFAULTS[name] | given for name, given in sections.items() if isinstance(given, dict)}

    @model_validator(mode="after")
    def _one_of_both(self) -> PretrainConfig:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")
        return self

    @model_validator(mode="after")
    def _size_fits(self) -> PretrainConfig:
        levels = {"unet": self.unet.channels, "svd": self.video.channels}.get(self.architecture)
        cells = self.transformer.patch if levels is None else 2 ** (len(levels) - 1)
        factor = self.vae.factor * cells
        if self.data.size % factor:
            raise ValueError(f"data.size must be a multiple of {factor} for this VAE and denoiser: {self.data.size}")
        return self

    @model_validator(mode="after")
    def _frames_are_of_clips(self) -> PretrainConfig:
        given = [name for name in ("frames", "decoder_steps") if getattr(self.vae, name)]
        if given and self.architecture != "svd":
            raise ValueError(f"vae.{given[0]} is of clips: leave it out, or set architecture to svd")
        return self

    @model_validator(mode="after")
    def _svd_has_its_own_ways(self) -> PretrainConfig:
        if self.architecture != "svd":
            return self
        if self.data.folder is not None:
            raise ValueError("svd learns from moving scenes, not from a folder of images: leave data.folder empty")
        if self.vae.groups != _GROUPS or any(channels % _GROUPS for channels in self.vae.channels):
            raise ValueError(f"svd: vae.groups is {_GROUPS}, and vae.channels are multiples of it")
        return self
