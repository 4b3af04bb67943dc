"""What is refused about main networks: schedulers, autoencoders, text encoders, channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lisa.common.errors import LisaError
from lisa.processes.ddpm import DDPM_PREDICTIONS

_PLAIN_BASE = "Inpainting, fill and channel-concatenating control models are not supported; use the plain base model"


def scheduler_of(pipeline: Any) -> dict[str, Any]:
    """The configuration of a loaded pipeline's scheduler as its folder has it: with the class."""
    return {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}


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


def check_flow_solver(scheduler: Mapping[str, Any], source: str) -> None:
    """The same, where a solver of another family is one of a flow if it is set up so (DPM-Solver, UniPC).

    Raises:
        LisaError: it is of another family, or not set up.
    """
    if scheduler.get("prediction_type") == "flow_prediction" and scheduler.get("use_flow_sigmas"):
        return
    if "use_flow_sigmas" in scheduler:
        raise LisaError(
            f"the scheduler of {source!r}, a {scheduler.get('_class_name')}, is not set up for a flow",
            'It needs "prediction_type": "flow_prediction" and "use_flow_sigmas": true in its configuration',
        )
    check_flow(scheduler, source)


def check_prediction(scheduler: Mapping[str, Any], source: str) -> None:
    """Refuse a scheduler whose model predicts something that has no residual here.

    Raises:
        LisaError: its prediction type is not supported, or it is not of the DDPM family.
    """
    prediction = scheduler.get("prediction_type") or "epsilon"
    if prediction not in DDPM_PREDICTIONS:
        raise LisaError(
            f"the main network {source!r} predicts {prediction!r} (prediction_type in its scheduler's configuration), "
            "which is not supported",
            "Use a main network that predicts one of these",
            DDPM_PREDICTIONS,
        )
    if "beta_schedule" not in scheduler:
        raise LisaError(
            f"the scheduler of {source!r} is a {scheduler.get('_class_name')}, not one of the DDPM family",
            "Use the scheduler the model was trained with",
        )


def check_edm(scheduler: Mapping[str, Any], source: str) -> None:
    """Refuse a scheduler's configuration that is not Stable Video Diffusion's kind of EDM.

    Raises:
        LisaError: it predicts something else, or counts time otherwise than by ln(sigma).
    """
    prediction, kind = scheduler.get("prediction_type"), scheduler.get("timestep_type")
    if (prediction, kind) != ("v_prediction", "continuous"):
        raise LisaError(
            f"the scheduler of {source!r} is a {scheduler.get('_class_name')} with prediction_type={prediction!r} and "
            f"timestep_type={kind!r}, not one of EDM",
            "Use the scheduler the model was trained with (EulerDiscreteScheduler, v_prediction, continuous)",
        )


def check_vae(pipeline: Any, source: str, kind: str = "AutoencoderKL") -> None:
    """Refuse an autoencoder that the family's pipelines cannot use.

    Raises:
        LisaError: it is of another class.
    """
    found = type(pipeline.vae).__name__
    if found != kind:
        raise LisaError(f"the VAE of {source!r} is a {found}", f"It must be an {kind}")


def check_shifted_vae(pipeline: Any, source: str) -> None:
    """Refuse an autoencoder that the pipelines of families with shifted latents cannot use.

    Raises:
        LisaError: it is of another class, or has no shift (0 does; pipelines add it, whatever it is).
    """
    check_vae(pipeline, source)
    if pipeline.vae.config.shift_factor is None:
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


def check_channels(
    source: str,
    takes: int,
    gives: int,
    latent: int,
    remedy: str = _PLAIN_BASE,
) -> None:
    """Refuse a transformer that takes more than the noisy latent, or gives something else.

    Args:
        source: where it came from.
        takes: channels of its input, unpacked.
        gives: channels of its output, unpacked.
        latent: channels of the autoencoder's latents.
        remedy: which model to use instead.

    Raises:
        LisaError: the numbers differ.
    """
    if (takes, gives) != (latent, latent):
        raise LisaError(
            f"the transformer of {source!r} takes {takes} and gives {gives} channels, its latents have {latent}", remedy
        )
