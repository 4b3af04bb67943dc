"""Layer names of side networks: ``down.5``, ``mid``, ``block.3``. Told by attribute, so nothing heavy is imported.

And what a dry run by which their strides are measured begins with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# (friendly name, path): a ModuleList gives name.0, name.1, ...; a single module gives the bare name. What follows a *
# lies inside each module of the list.
_ATTRIBUTES = (
    ("down", "controlnet_down_blocks"),
    ("mid", "controlnet_mid_block"),
    ("block", "controlnet_blocks"),
    ("single", "controlnet_single_blocks"),
    ("adapter", "adapter.body"),
    ("block", "control_layers.*.after_proj"),
    ("block", "vace_blocks.*.proj_out"),
)


def layer_names(side_network: nn.Module) -> dict[str, str]:
    """Friendly name -> dotted path of the zero module whose input is the feature; of an adapter, whose output it is."""
    names: dict[str, str] = {}
    for friendly, attribute in _ATTRIBUTES:
        module: object = side_network
        path, _, inside = attribute.partition(".*")
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.ModuleList):
            names |= {f"{friendly}.{i}": f"{path}.{i}{inside}" for i in range(len(module))}
        elif isinstance(module, nn.Module):
            names[friendly] = path
    return names


def zeros_like(network: nn.Module) -> Callable[..., Tensor]:
    """Makes zeros of a shape, of the type and on the device of ``network``: what it is run on to see what it gives."""
    parameter = next(network.parameters())

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)

    return zeros
