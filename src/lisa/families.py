"""What a family is made of, in one place to import from: for packages that add a pair of their own.

``docs/adding-a-family.md`` builds one with it.
"""

from lisa.common.errors import LisaError
from lisa.core.packing import pack, unpack
from lisa.core.precision import in_dtype_of
from lisa.mains.base import Context, MainNetwork
from lisa.mains.checks import check_flow, check_prediction
from lisa.mains.codec import DCCodec, KLCodec, QwenImageCodec
from lisa.mains.flow import flow_process
from lisa.mains.loading import Layout, load_pipeline
from lisa.mains.pipeline_main import PipelineMain
from lisa.pairs.base import PairSpec, PipelineCall
from lisa.pairs.fit import check_same, misfit, refuse_depth, refuse_stacking
from lisa.processes.ddpm import DDPM_PREDICTIONS, DDPMProcess
from lisa.processes.edm import EDMProcess
from lisa.processes.flow import RectifiedFlowProcess
from lisa.sides.base import DiffusersSide, Layer, SideNetwork, SideOptions
from lisa.sides.copying import common_configuration, copy_weights

__all__ = [
    "DDPM_PREDICTIONS",
    "Context",
    "DCCodec",
    "DDPMProcess",
    "DiffusersSide",
    "EDMProcess",
    "KLCodec",
    "Layer",
    "Layout",
    "LisaError",
    "MainNetwork",
    "PairSpec",
    "PipelineCall",
    "PipelineMain",
    "QwenImageCodec",
    "RectifiedFlowProcess",
    "SideNetwork",
    "SideOptions",
    "check_flow",
    "check_prediction",
    "check_same",
    "common_configuration",
    "copy_weights",
    "flow_process",
    "in_dtype_of",
    "load_pipeline",
    "misfit",
    "pack",
    "refuse_depth",
    "refuse_stacking",
    "unpack",
]
