"""What can be set for ``lisa train``: each option once, with its description; docs/configuration.md is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lisa.train.align_settings import AlignSettings
from lisa.train.network_settings import ModelSettings, SideSettings
from lisa.train.presets import PRESETS, on_top, settings_of
from lisa.train.settings import Positive, Settings, one_of

CacheItem = Literal["latents", "text", "conditions"]
_POLYNOMIAL_END = 1e-7  # of the rate, by diffusers' schedule
# What train.mixed_precision computes in.
_COMPUTED_IN = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
Decay = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(Settings):
    """Images, conditions and captions."""

    source: str = Field(
        "scenes",
        description="scenes, moving-scenes (clips), a folder (images/ or clips/, conditions/, captions), a parquet "
        "file, or a Hub name.",
    )
    condition: str | list[str] = Field(
        "edges",
        description="What the conditions are; picks the scene drawing and the fidelity. Several are stacked.",
    )
    size: int | tuple[int, int] = Field(64, description="Pixels: side of a square, or [height, width].")
    frames: int | None = Field(None, ge=2, description="Frames of a clip, for pairs that make video; empty: pictures.")
    frame_rate: float | None = Field(
        None, gt=0, description="Of them per second; empty: every frame of a clip (of moving-scenes: 8)."
    )
    short_clips: Literal["error", "repeat"] = Field(
        "error", description="A clip with too few frames: an error, or its last frame repeated."
    )
    crop: Literal["center", "random"] = Field("center", description="Crop; random is fixed per sample.")
    flip: bool = Field(False, description="Mirror image and condition in half of the visits.")
    scenes: int = Field(8_000, ge=4, description="Number of scenes, where the source is scenes or moving-scenes.")
    scenes_seed: int = Field(1, ge=0, description="Stream of scenes; the embedded models were pretrained on stream 0.")
    held_out: int = Field(64, ge=2, description="Samples never trained on, chosen by the hash of their names.")
    default_caption: str | None = Field(
        None, description="Caption of samples that have none; empty: an error, where captions are read."
    )
    image_column: str = Field("image", description="Column of the image (parquet, Hub).")
    condition_column: str | list[str] = Field(
        "conditioning_image", description="Column of the condition (parquet, Hub); one for each of several conditions."
    )
    caption_column: str = Field("text", description="Column of the caption (parquet, Hub).")
    split: str = Field("train", description="Split of a Hub data set.")
    cache: tuple[CacheItem, ...] = Field(
        ("latents", "text"),
        description="What is computed once and kept on disk: latents (of the conditions, too, where the side network "
        "reads those), text (or what is read off first frames), conditions.",
    )
    cache_dir: Path | None = Field(None, description="Folder of the cache; empty: OUT/cache.")
    workers: int = Field(0, ge=0, description="Processes that read and transform pictures.")

    @field_validator("size")
    @classmethod
    def _sensible(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if min(value if isinstance(value, tuple) else (value,)) < 16:
            raise ValueError("at least 16 pixels")
        return value

    @model_validator(mode="after")
    def _of_clips(self) -> DataSettings:
        if self.frames is None and (self.frame_rate is not None or self.short_clips != "error"):
            raise ValueError("frame_rate and short_clips are of clips; set data.frames too")
        return self

    @field_validator("condition", "condition_column")
    @classmethod
    def _different(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError("must be a name, or a list of different names")
        return names[0] if len(names) == 1 else names

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions, in the order in which they are stacked."""
        return (self.condition,) if isinstance(self.condition, str) else tuple(self.condition)

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class TrainSettings(Settings):
    """Optimisation."""

    steps: Positive = Field(10_000, description="Optimiser steps.")
    batch_size: Positive = Field(4, description="Samples per process and micro-step.")
    accumulation: Positive = Field(1, description="Micro-steps per optimiser step.")
    learning_rate: float = Field(1e-5, gt=0, description="Learning rate of the side network.")
    decoder_lr_multiplier: float = Field(1.0, gt=0, description="Times the learning rate, for the alignment decoder.")
    zero_lr_multiplier: float = Field(
        1.0,
        gt=0,
        description="Times the learning rate, for the zero modules (also where side.condition_init starts one "
        "otherwise).",
    )
    lr_schedule: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = Field("constant_with_warmup", description="Learning-rate schedule of diffusers.optimization.")
    warmup: int = Field(500, ge=0, description="Warm-up steps.")
    optimizer: Literal["adamw", "adamw-8bit"] = Field("adamw", description="adamw-8bit needs the extra 'bnb' and CUDA.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay rates.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    clip_norm: float = Field(1.0, gt=0, description="Largest gradient norm, of side network and decoder apart.")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no",
        description="Autocast of what is trained; the frozen network is cast. fp16: not for Flux, Qwen-Image, Sana and "
        "Z-Image, which overflow in it.",
    )
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an exponential average of the side network.")
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Min-SNR weighting of the main loss by noise level (arXiv 2303.09556, which uses 5); empty: none. "
        "It makes the main loss smaller, so that the same align.weight is more beside it.",
    )
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of captions replaced by the empty one.")
    max_skipped: Positive = Field(20, description="Stop after that many steps in a row that were not finite.")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_name(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false


class LogSettings(Settings):
    """What is written down while training, and how often (in steps)."""

    every: Positive = Field(10, description="Steps between lines of events.jsonl.")
    held_out_every: Positive = Field(250, description="Steps between held-out readings of the meter.")
    held_out_levels: Positive = Field(2, description="Noise levels per held-out sample and reading.")
    samples_every: Positive = Field(1_000, description="Steps between sample grids.")
    samples: int = Field(6, ge=1, description="Held-out samples in a grid.")
    fidelity_every: Positive | None = Field(
        1_000, description="Steps between readings of the fidelity, the best kept as OUT/best; empty: none."
    )
    fidelity_samples: int = Field(16, ge=2, description="Held-out samples of such a reading, with fixed noise.")
    fidelity_share: float | None = Field(
        0.05, gt=0, le=1, description="Largest share of the time for readings; any beyond it is left out. Empty: none."
    )
    checkpoint_every: Positive = Field(1_000, description="Steps between checkpoints.")
    checkpoint_limit: int = Field(2, ge=0, description="Checkpoints kept; 0: all.")
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        "tensorboard", description="Where curves and sample grids go, too; wandb needs the extra 'wandb'."
    )


class SampleSettings(Settings):
    """How pictures are sampled, in grids and for the final fidelity."""

    steps: Positive = Field(20, description="Sampling steps (DPM-Solver++; Euler of flows and Stable Video Diffusion).")
    guidance: float = Field(
        3.0,
        ge=0,
        description="Classifier-free guidance scale; 1: none. Of Stable Video Diffusion the last frame's, rising "
        "from 1.",
    )
    control_scale: float = Field(1.0, ge=0, description="Scale of the side network's residuals.")
    count: int = Field(64, ge=2, description="Held-out samples for the final fidelity (at most data.held_out).")
    batch_size: Positive = Field(16, description="Pictures sampled together; clips are made one by one.")


class TrainConfig(Settings):
    """Everything that can be set for ``lisa train``."""

    out: Path = Field(Path("runs/train"), description="Run folder.")
    seed: int = Field(0, ge=0, description="Seed of everything: order, noise, dropout, initial weights.")
    resume: str | None = Field(
        None,
        description="latest, a step, or a checkpoint folder: continue from there, with the rates and decays that are "
        "set now. Later checkpoints are given up.",
    )
    overwrite: bool = Field(False, description="Replace an earlier run in OUT.")
    preset: str | None = Field(
        None,
        description=f"Named settings ({', '.join(PRESETS)}). In a file they lie beneath its other settings; on the "
        "command line on top of the file's and of what stands before them. Beside one that does not align, settings of "
        "the alignment need align.enabled=true after it.",
    )
    model: ModelSettings = Field(default_factory=ModelSettings, description="Main network.")
    side: SideSettings = Field(default_factory=SideSettings, description="Side network.")
    data: DataSettings = Field(default_factory=DataSettings, description="Data.")
    align: AlignSettings = Field(default_factory=AlignSettings, description="Alignment.")
    train: TrainSettings = Field(default_factory=TrainSettings, description="Optimisation.")
    log: LogSettings = Field(default_factory=LogSettings, description="Logging.")
    sample: SampleSettings = Field(default_factory=SampleSettings, description="Sampling.")

    @model_validator(mode="before")
    @classmethod
    def _on_its_preset(cls, given: Any) -> Any:
        return on_top(settings_of(given.get("preset")), given) if isinstance(given, dict) else given

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        return value if value is None else one_of(value, PRESETS)

    @model_validator(mode="after")
    def _one_of_both(self) -> TrainConfig:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")
        return self

    @model_validator(mode="after")
    def _captions_that_nobody_reads(self) -> TrainConfig:
        """Clips that begin with a frame instead of a prompt need no captions."""
        from lisa.pairs import pair_spec

        if self.data.default_caption is None and pair_spec(self.model.pair).call.begins == "frame":
            self.data = self.data.model_copy(update={"default_caption": ""})  # it may be another's, too
        return self

    @property
    def main_dtype(self) -> str:
        """The type that the main network and its text encoders are read and kept in."""
        return self.model.dtype or _COMPUTED_IN[self.train.mixed_precision]

    @model_validator(mode="after")
    def _precision(self) -> TrainConfig:
        """One rule: the frozen network is in float32, or in the type that mixed precision computes in."""
        computed = _COMPUTED_IN[self.train.mixed_precision]
        if self.main_dtype not in ("float32", computed):
            raise ValueError(
                f"model.dtype is {self.main_dtype}, but train.mixed_precision={self.train.mixed_precision} computes in "
                f"{computed}; leave model.dtype empty, or choose the mixed precision of that type"
            )
        if self.model.quantize != "none" and self.main_dtype == "float32":
            raise ValueError(
                f"model.quantize={self.model.quantize} needs a 16-bit type to compute in; set "
                "train.mixed_precision=bf16 and leave model.dtype empty"
            )
        return self

    @model_validator(mode="after")
    def _rate_can_fall(self) -> TrainConfig:
        if self.train.lr_schedule == "polynomial" and self.train.learning_rate <= _POLYNOMIAL_END:
            raise ValueError(
                f"train.lr_schedule=polynomial falls to {_POLYNOMIAL_END:g}; set train.learning_rate above it: "
                f"{self.train.learning_rate:g}"
            )
        return self

    @model_validator(mode="after")
    def _something_is_controlled(self) -> TrainConfig:
        if self.align.active and self.align.warmup >= self.train.steps:
            raise ValueError(
                f"align.warmup is {self.align.warmup} of {self.train.steps} steps, so nothing would learn to control; "
                "make it smaller than train.steps"
            )
        return self

    @model_validator(mode="after")
    def _another_sample(self) -> TrainConfig:
        if self.align.active and self.align.target == "shuffled" and self.train.batch_size < 2:
            raise ValueError(
                "align.target=shuffled needs another sample in the batch; set train.batch_size to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _all_cached(self) -> TrainConfig:
        missing = [name for name in ("latents", "text") if name not in self.data.cache]
        if self.model.offload_encoders in ("cpu", "disk") and missing:
            raise ValueError(
                f"model.offload_encoders={self.model.offload_encoders} needs {' and '.join(missing)} in data.cache, "
                "or the encoders would be wanted at every step"
            )
        return self
