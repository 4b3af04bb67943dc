"""What the weights of a main network are read into: their type, and perhaps 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lisa.common.errors import LisaError

_REMEDY = "Install the extra: pip install 'lisa-diffusion[bnb]', on a machine with CUDA; or set model.quantize=none"


@dataclass(frozen=True)
class Weights:
    """How weights are read.

    Attributes:
        dtype: of the main network and of the text encoders. The VAE is always read in float32: SD's overflows in
            float16, and its latents are worth the precision.
        quantize: ``none``, or of the main network's linear layers: ``int8`` (LLM.int8, arXiv 2208.07339), ``nf4`` (4
            bits with quantised constants, QLoRA, arXiv 2305.14314). They go to the accelerator as they are read.
    """

    dtype: torch.dtype = torch.float32
    quantize: str = "none"

    @property
    def plain(self) -> Weights:
        """The same, not quantised."""
        return replace(self, quantize="none")

    def options(self, network: str) -> dict[str, Any]:
        """For a pipeline's ``from_pretrained``; ``network``: its name of the main network."""
        options: dict[str, Any] = {"torch_dtype": {"default": self.dtype, "vae": torch.float32}}
        if self.quantize != "none":
            options["quantization_config"] = _quantization(self, network)
        return options


FLOAT32 = Weights()


def check_quantization(quantize: str) -> None:
    """Refuse quantised weights where they cannot be had.

    Raises:
        LisaError: bitsandbytes is not installed, or there is no CUDA.
    """
    if quantize == "none":
        return
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise LisaError(f"model.quantize={quantize} needs bitsandbytes ({error})", _REMEDY) from None
    if not torch.cuda.is_available():
        raise LisaError(f"model.quantize={quantize} runs on CUDA only, and there is none here", _REMEDY)


def is_quantized(network: Any) -> bool:
    """Whether a diffusers model was read quantised: it can then be neither cast nor copied from."""
    return getattr(network, "hf_quantizer", None) is not None


def _quantization(weights: Weights, network: str) -> Any:
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers import PipelineQuantizationConfig

    if weights.quantize == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=weights.dtype,
        )
    return PipelineQuantizationConfig(quant_mapping={network: config})
