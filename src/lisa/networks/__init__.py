"""Networks and pipelines of our own, in diffusers' manner, for what it has none for. Importing it imports diffusers."""

from lisa.networks.svd_controlnet import SVDControlNet
from lisa.networks.svd_pipeline import SVDControlNetPipeline
from lisa.networks.wan_vace import WanVACEBranch

__all__ = ["SVDControlNet", "SVDControlNetPipeline", "WanVACEBranch"]
