"""Pairs of a main and a side network. A family is one file here, one in ``mains`` and one in ``sides``."""

from lisa.pairs.animatediff import ANIMATEDIFF_CONTROLNET
from lisa.pairs.base import Inputs, Pair, PairSpec, PipelineCall, Prediction
from lisa.pairs.flux import FLUX_CONTROLNET
from lisa.pairs.hunyuan import HUNYUAN_CONTROLNET
from lisa.pairs.qwen import QWEN_CONTROLNET
from lisa.pairs.registry import pair_names, pair_spec, register
from lisa.pairs.sana import SANA_CONTROLNET
from lisa.pairs.sd3 import SD3_CONTROLNET
from lisa.pairs.sdxl import SDXL_CONTROLNET, SDXL_CONTROLNET_UNION
from lisa.pairs.stable_diffusion import SD_CONTROLNET
from lisa.pairs.svd import SVD_CONTROLNET
from lisa.pairs.t2i_adapter import SD_T2I_ADAPTER, SDXL_T2I_ADAPTER
from lisa.pairs.wan import WAN_VACE
from lisa.pairs.zimage import ZIMAGE_CONTROLNET

for _spec in (
    SD_CONTROLNET,
    SD_T2I_ADAPTER,
    SDXL_CONTROLNET,
    SDXL_CONTROLNET_UNION,
    SDXL_T2I_ADAPTER,
    SD3_CONTROLNET,
    FLUX_CONTROLNET,
    HUNYUAN_CONTROLNET,
    SANA_CONTROLNET,
    QWEN_CONTROLNET,
    ZIMAGE_CONTROLNET,
    SVD_CONTROLNET,
    WAN_VACE,
    ANIMATEDIFF_CONTROLNET,
):
    register(_spec)

__all__ = ["Inputs", "Pair", "PairSpec", "PipelineCall", "Prediction", "pair_names", "pair_spec", "register"]
