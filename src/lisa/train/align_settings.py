"""What can be set about the alignment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lisa.train.settings import Positive, Settings, one_of


class AlignSettings(Settings):
    """Likelihood score alignment; the defaults are the reference's."""

    enabled: bool = Field(
        True, description="False: none; without a preset the plain baseline, with the same seeds, data order and noise."
    )
    layer: str | list[str] | None = Field(None, description="Layer or layers to align; empty: the pair's default.")
    weight: float = Field(0.2, ge=0, description="Weight of the alignment loss.")
    target: Literal["likelihood", "shuffled"] = Field(
        "likelihood",
        description="What the decoder must read: the sample's own residual, or (a control for comparisons, which must "
        "not help) that of another sample of the batch.",
    )
    weighting: str = Field("plain", description="By noise level: plain, normalised or min-snr.")
    balanced: bool = Field(
        False,
        description="Weight is the ratio of the alignment's gradient to the main loss's at the one aligned layer, "
        "instead of a factor between the losses (which it stays during align.warmup, where there is no main loss).",
    )
    noises: Positive = Field(
        1,
        description="Noises and noise levels per picture that are aligned in a step; those beyond the first have no "
        "controlled pass.",
    )
    teacher: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of an average of the side network's own past (its controlled prediction) in what the "
        "decoder must read: less noise than one sample's target. 1: that alone, which is nothing before control "
        "sets in. Not in align.warmup.",
    )
    teacher_decay: float = Field(0.99, ge=0, lt=1, description="Decay of that average, per step.")
    warmup: int = Field(
        0, ge=0, description="First steps that align alone, without a controlled pass: cheaper than plain steps."
    )
    decoder_reads: Literal["feature", "x_t", "prior"] = Field(
        "feature",
        description="What the decoder is given: the feature alone (of side networks that do not see it, the noisy "
        "latent too), with the noisy latent, or with that and the prior. Neither tells the residual by itself.",
    )
    decoder_channels: Positive = Field(
        64,
        description="The decoder's halving of channels stops there; refused where its channels are the same with 64.",
    )
    schedule: str = Field("constant", description="Weight over steps: constant, cosine or until-done.")
    patience: int = Field(3, ge=1, description="until-done: held-out readings without a rise before it stops.")
    min_delta: float = Field(0.002, ge=0, description="until-done: the smallest rise that counts.")

    @field_validator("weighting", "schedule")
    @classmethod
    def _known_name(cls, value: str, info: ValidationInfo) -> str:
        from lisa.core.residual import weighting_names
        from lisa.core.schedule import schedule_names

        return one_of(value, weighting_names() if info.field_name == "weighting" else schedule_names())

    @model_validator(mode="after")
    def _teacher_knows_the_sample(self) -> AlignSettings:
        if self.teacher and self.target == "shuffled":
            raise ValueError("teacher and target=shuffled exclude each other: the teacher knows the sample itself")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is aligned."""
        return self.enabled and self.weight > 0

    def schedule_options(self) -> dict[str, Any]:
        """Options of the schedule that takes any."""
        return {"patience": self.patience, "min_delta": self.min_delta} if self.schedule == "until-done" else {}
