"""Layer names of side networks: ``down.5``, ``mid``, ``block.3``. Told by attribute, so nothing heavy is imported."""

from __future__ import annotations

from torch import nn

# (friendly name, attribute): a ModuleList gives name.0, name.1, ...; a single module gives the bare name.
_ATTRIBUTES = (
    ("down", "controlnet_down_blocks"),
    ("mid", "controlnet_mid_block"),
    ("block", "controlnet_blocks"),
    ("single", "controlnet_single_blocks"),
)


def layer_names(side_network: nn.Module) -> dict[str, str]:
    """Friendly name -> dotted path of the zero module whose input is the feature."""
    names: dict[str, str] = {}
    for friendly, attribute in _ATTRIBUTES:
        module = getattr(side_network, attribute, None)
        if isinstance(module, nn.ModuleList):
            names |= {f"{friendly}.{i}": f"{attribute}.{i}" for i in range(len(module))}
        elif isinstance(module, nn.Module):
            names[friendly] = attribute
    return names
