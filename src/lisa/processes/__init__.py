"""Forward processes behind one interface, and the draws that feed them."""

from lisa.processes.base import ForwardProcess
from lisa.processes.ddpm import DDPMProcess
from lisa.processes.draws import Draws
from lisa.processes.edm import EDMProcess
from lisa.processes.flow import RectifiedFlowProcess

__all__ = ["DDPMProcess", "Draws", "EDMProcess", "ForwardProcess", "RectifiedFlowProcess"]
