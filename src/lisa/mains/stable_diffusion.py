"""Stable Diffusion 1.x and 2.x: ``UNet2DConditionModel``, one CLIP text encoder, 4-channel latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lisa.common.errors import LisaError
from lisa.common.model_folders import SINGLE_FILES, first_line, is_hub_name, read_json, weight_variant
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context
from lisa.processes.ddpm import DDPM_PREDICTIONS, DDPMProcess

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionAdapterPipeline",
)


class StableDiffusionMain:
    """See :class:`lisa.mains.base.MainNetwork`.

    Args:
        pipeline: a ``StableDiffusionPipeline``; its modules are frozen and put into eval mode.
        source: where it came from.

    Raises:
        LisaError: its prediction type, its VAE or what its UNet takes is not supported.
    """

    family = "stable-diffusion"

    def __init__(self, pipeline: Any, source: str) -> None:
        _check_pipeline(pipeline, source)
        self.pipeline, self.source = pipeline, source
        self.network: nn.Module = pipeline.unet
        self.process = DDPMProcess(dict(pipeline.scheduler.config))
        self.latent_channels = int(pipeline.vae.config.latent_channels)
        self.latent_factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._scaling = float(pipeline.vae.config.scaling_factor)
        self._shift = float(getattr(pipeline.vae.config, "shift_factor", None) or 0.0)
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval().float()

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's own ``encode_prompt``; ``{"encoder_hidden_states": (B, L, D)}``."""
        self._need("text_encoder")
        device = next(self.pipeline.text_encoder.parameters()).device
        with torch.no_grad():
            embeds, _ = self.pipeline.encode_prompt(list(captions), device, 1, False)
        return {"encoder_hidden_states": embeds}

    def encode_moments(self, pixels: Tensor) -> Tensor:
        """Scaled posterior mean and standard deviation."""
        self._need("vae")
        vae = self.pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return torch.cat([(posterior.mean - self._shift) * self._scaling, posterior.std * self._scaling], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in -1..1."""
        self._need("vae")
        vae = self.pipeline.vae
        with torch.no_grad():
            pixels: Tensor = vae.decode((latents / self._scaling + self._shift).to(vae.device, vae.dtype)).sample
        return pixels

    def forward(self, x_t: Tensor, t: Tensor, context: Context, residuals: Any = None) -> Tensor:
        """``residuals``: ``(down, mid)`` as ``ControlNetModel`` gives them, or None."""
        down, mid = residuals if residuals is not None else (None, None)
        network = self.network
        prediction: Tensor = network(
            in_dtype_of(network, x_t),
            self.process.model_time(t),
            in_dtype_of(network, context["encoder_hidden_states"]),
            down_block_additional_residuals=None if down is None else [in_dtype_of(network, each) for each in down],
            mid_block_additional_residual=None if mid is None else in_dtype_of(network, mid),
            return_dict=False,
        )[0]
        return prediction

    def shared_modules(self) -> list[nn.Module]:
        """Down blocks and middle block: a ControlNet enters after them."""
        blocks = [*self.network.down_blocks, self.network.mid_block]
        return [block for block in blocks if block is not None]

    def pipeline_components(self) -> dict[str, Any]:
        """Components without a safety checker, for any Stable Diffusion pipeline."""
        self._need("vae")
        self._need("text_encoder")
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        return {name: self.pipeline.components[name] for name in names}

    def encoder_modules(self, part: str) -> list[nn.Module]:
        """The VAE, or the text encoder."""
        name = {"image": "vae", "text": "text_encoder"}[part]
        self._need(name)
        return [getattr(self.pipeline, name)]

    def drop_encoders(self) -> None:
        """Free the text encoder and the VAE."""
        self.pipeline.text_encoder = None
        self.pipeline.vae = None

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """The VAE stays in float32: SD's overflows in float16 and its latents are worth the precision."""
        types = {"network": dtype, "text_encoder": dtype, "vae": torch.float32}
        modules = {"network": self.network, "text_encoder": self.pipeline.text_encoder, "vae": self.pipeline.vae}
        for name, module in modules.items():
            if module is not None:
                nn.Module.to(module, device, types[name])  # diffusers' own to() warns about nothing with every cast

    def _need(self, name: str) -> None:
        if getattr(self.pipeline, name) is None:
            raise LisaError(f"the {name} was dropped from memory", "Load the main network again")


def load_stable_diffusion(source: str, *, variant: str | None = None, config: str | None = None) -> StableDiffusionMain:
    """Load a diffusers folder, a Hub name, or a single-file checkpoint.

    Args:
        source: a folder with ``model_index.json``, a Hub name (``owner/model``), or a ``.safetensors``/``.ckpt`` file.
        variant: file variant such as ``fp16`` (found by itself in a folder that has no other); computed with in float32
            whatever they are stored in.
        config: for single files: a folder (or Hub name) in diffusers' layout that tells the architecture.

    Raises:
        LisaError: nothing is there, or it is not a Stable Diffusion 1.x/2.x model that can be trained on.
    """
    path = Path(source)
    single = path.suffix in SINGLE_FILES and not path.is_dir()
    if single:
        _check_file(path, config)
    else:
        variant = _check_folder(path, source, variant)
    try:
        pipeline = _from_file(source, config) if single else _from_folder(source, variant)
    except Exception as error:  # diffusers, transformers and the Hub raise many kinds; all mean: this cannot be loaded
        raise LisaError(
            f"the main network {source!r} cannot be loaded: {first_line(error)}",
            "Give a diffusers folder, a Hub name (with network or a filled cache), or a single-file checkpoint"
            + (" (with model.single_file_config=FOLDER where there is no network)" if single else ""),
        ) from error
    return StableDiffusionMain(pipeline, source)


def _from_folder(source: str, variant: str | None) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(
        source,
        variant=variant,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def _from_file(source: str, config: str | None) -> Any:
    from diffusers import StableDiffusionPipeline

    options = {} if config is None else {"config": config, "local_files_only": Path(config).is_dir()}
    return StableDiffusionPipeline.from_single_file(
        source,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        **options,
    )


def _check_file(path: Path, config: str | None) -> None:
    """The checkpoint must exist, and the folder that tells its architecture must be one."""
    if not path.is_file():
        raise LisaError(f"there is no checkpoint file {str(path)!r}", "Check model.path")
    if config is None:
        return
    folder = Path(config)
    if folder.is_dir():
        _check_index(folder)
        _check_prediction(folder)
    elif folder.exists() or not is_hub_name(config):
        raise LisaError(f"there is no folder {config!r}", "Check model.single_file_config")


def _check_folder(path: Path, source: str, variant: str | None) -> str | None:
    """Refuse before loading what can be refused before; the variant of the weights to load."""
    if path.is_dir():
        _check_index(path)
        _check_prediction(path)
        return weight_variant(path / "unet", variant)
    if path.exists():
        raise LisaError(
            f"{source!r} is a file, but no checkpoint", "A single-file checkpoint ends as one of these", SINGLE_FILES
        )
    if not is_hub_name(source):
        raise LisaError(
            f"there is no folder {source!r}", "Check model.path; a Hub name looks like owner/model; tiny-sd is embedded"
        )
    return variant


def _check_index(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise LisaError(
            f"{str(folder)!r} is not a diffusers model folder (it has no model_index.json)",
            "Name the folder that contains unet/, vae/, text_encoder/ and model_index.json",
        )
    name = read_json(index).get("_class_name")
    if name not in PIPELINES:
        raise LisaError(f"{str(folder)!r} holds a {name}, which is not supported yet", choices=PIPELINES)


def _check_prediction(folder: Path) -> None:
    """Refuse a prediction type from the scheduler's file, before gigabytes of weights are read."""
    file = folder / "scheduler" / "scheduler_config.json"
    if file.is_file():
        check_prediction(read_json(file), str(folder))


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


def _check_pipeline(pipeline: Any, source: str) -> None:
    """What can only be told once the model is there."""
    check_prediction({"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}, source)
    unet, vae = pipeline.unet.config, pipeline.vae.config
    if type(pipeline.vae).__name__ != "AutoencoderKL":
        raise LisaError(f"the VAE of {source!r} is a {type(pipeline.vae).__name__}", "It must be an AutoencoderKL")
    if unet.in_channels != vae.latent_channels:
        raise LisaError(
            f"the UNet of {source!r} takes {unet.in_channels} channels, its latents have {vae.latent_channels}",
            "Inpainting and depth UNets have extra input channels and are not supported; use the plain base model",
        )
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if getattr(unet, name, None) is not None:
            raise LisaError(
                f"the UNet of {source!r} has {name}={getattr(unet, name)!r}: it needs more than text",
                "Use a plain Stable Diffusion 1.x or 2.x model",
            )
