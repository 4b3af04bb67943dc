"""Main networks that are rectified flows: the process their scheduler tells, and what is refused about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lisa.common.errors import LisaError
from lisa.processes.flow import RectifiedFlowProcess


def flow_process(scheduler: Mapping[str, Any], model_time_scale: float) -> RectifiedFlowProcess:
    """The process of a scheduler's configuration.

    Where the scheduler shifts by the size of the picture (``use_dynamic_shifting``), that belongs to sampling, and
    training timesteps are not shifted.
    """
    dynamic = bool(scheduler.get("use_dynamic_shifting"))
    shift = 1.0 if dynamic else float(scheduler.get("shift") or 1.0)
    return RectifiedFlowProcess(shift=shift, model_time_scale=model_time_scale)


def check_flow(scheduler: Mapping[str, Any], source: str) -> None:
    """Refuse a scheduler's configuration that is not a rectified flow's.

    Raises:
        LisaError: it is of another family.
    """
    name = str(scheduler.get("_class_name"))
    if not name.startswith("FlowMatch"):
        raise LisaError(
            f"the scheduler of {source!r} is a {name}, not one of rectified flow",
            "Use the scheduler the model was trained with (FlowMatchEulerDiscreteScheduler)",
        )


def check_scheduler_in_memory(pipeline: Any, source: str) -> None:
    """:func:`check_flow` of a pipeline that is loaded already."""
    check_flow({"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}, source)


def check_vae(pipeline: Any, source: str) -> None:
    """Refuse an autoencoder that the family's pipelines cannot use.

    Raises:
        LisaError: it is of another class, or has no shift (0 does; pipelines add it, whatever it is).
    """
    vae = pipeline.vae
    if type(vae).__name__ != "AutoencoderKL":
        raise LisaError(f"the VAE of {source!r} is a {type(vae).__name__}", "It must be an AutoencoderKL")
    if vae.config.shift_factor is None:
        raise LisaError(
            f"the VAE of {source!r} has no shift_factor, which the family's pipelines need",
            "Set shift_factor in vae/config.json (0.0 where its latents are not shifted)",
        )


def check_encoders(pipeline: Any, source: str, encoders: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse a pipeline that lacks a text encoder, or has one without its tokenizer.

    Raises:
        LisaError: it does; the message names it.
    """
    for name in encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        if getattr(pipeline, name) is None and name not in optional:
            raise LisaError(f"{source!r} has no {name}", "Complete the folder: download the model again")
        if getattr(pipeline, name) is not None and getattr(pipeline, tokenizer) is None:
            raise LisaError(f"{source!r} has a {name} but no {tokenizer}", "Add the tokenizer, or remove both")


def check_channels(pipeline: Any, source: str, takes: int, gives: int) -> None:
    """Refuse a transformer that takes more than the noisy latent, counted in the VAE's channels.

    Raises:
        LisaError: the numbers differ.
    """
    latent = pipeline.vae.config.latent_channels
    if (takes, gives) != (latent, latent):
        raise LisaError(
            f"the transformer of {source!r} takes {takes} and gives {gives} channels, its latents have {latent}",
            "Inpainting, fill and channel-concatenating control models are not supported; use the plain base model",
        )
