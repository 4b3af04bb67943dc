"""What can be set about the two networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lisa.train.settings import Settings, one_of


class ModelSettings(Settings):
    """The main network (base model), frozen."""

    path: str = Field(
        "tiny-sd",
        description="Embedded model (tiny-sd, tiny-sd3, tiny-svd), diffusers folder, Hub name, or single-file "
        "checkpoint.",
    )
    pair: str = Field("sd-controlnet", description="Kind of main and side network.")
    variant: str | None = Field(None, description="File variant of the folder, such as fp16.")
    single_file_config: str | None = Field(
        None, description="For single-file checkpoints: a diffusers folder that tells the architecture."
    )
    share_prior: bool = Field(True, description="Compute what prior and controlled pass have in common once.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type in which network and text encoders are read and kept; empty: train.mixed_precision's."
    )
    quantize: Literal["none", "int8", "nf4"] = Field(
        "none", description="Network in 8 or 4 bits; needs the extra 'bnb', CUDA, and train.mixed_precision."
    )
    offload_encoders: Literal["auto", "none", "cpu", "disk"] = Field(
        "auto",
        description="Text encoders and VAE, once all they give is cached: kept (none), moved to the CPU, or let go and "
        "read again (disk); they come back to sample. auto: cpu where it saves an accelerator's memory.",
    )
    guidance: float | None = Field(
        None,
        ge=0,
        description="Embedded guidance in training, of distilled networks (Flux.1 dev); empty: 3.5.",
    )
    log_sigma: tuple[float, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Mean and standard deviation of ln(sigma) in training, of EDM models (SVD); empty: 0.7 and 1.6, "
        "for 576x1024. Smaller clips want a smaller mean.",
    )

    @field_validator("pair")
    @classmethod
    def _known_pair(cls, value: str) -> str:
        from lisa.pairs import pair_names

        return one_of(value, pair_names())


class SideSettings(Settings):
    """The side network, trained."""

    init: str | None = Field(
        None,
        description="Existing side network to start from (folder, run, Hub name or .safetensors); empty: a new one.",
    )
    condition_init: Literal["default", "lsuv", "auto"] = Field(
        "default",
        description="Start of a new side network's condition embedding: the family's, which at first lets hardly "
        "anything of the condition in; lsuv, scaled by the training's conditions: control sets in sooner; auto: lsuv "
        "of a new side network that has such an embedding.",
    )
    depth: int | None = Field(
        None, ge=1, description="Blocks of a new side network that is a stack of them; empty: the family's custom."
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Freeze the copy and train adapters (LoRA) of this rank on it; empty: train it in full."
    )
    lora_alpha: float | None = Field(None, gt=0, description="Adapters are scaled by alpha / rank; empty: by 1.")
    lora_targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="Ends of the names of adapted layers, such as to_q; empty: the family's custom."
    )
    control_type: int | None = Field(
        None, ge=0, description="For a ControlNet-Union: number of the kind of condition that is trained; empty: 0."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")

    @model_validator(mode="after")
    def _low_rank(self) -> SideSettings:
        given = [name for name in ("lora_alpha", "lora_targets") if getattr(self, name) is not None]
        if given and self.lora_rank is None:
            raise ValueError(f"{' and '.join(given)} without lora_rank would do nothing; set side.lora_rank too")
        return self

    @model_validator(mode="after")
    def _of_a_new_one(self) -> SideSettings:
        if self.init is not None and self.depth is not None:
            raise ValueError("depth is of a new side network; the one that init names has its own")
        if self.init is not None and self.condition_init == "lsuv":
            raise ValueError(
                "condition_init is of a new side network; the one that init names has learnt its embedding"
            )
        return self
