"""Named settings: ``preset=NAME`` on the command line or in a file. A new one is an entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lisa.common.errors import LisaError

#: Name -> sections of settings. docs/evidence.md says where each was found, and what it is worth.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sooner": {
        # What differs between conditions reaches a new side network from its first step on.
        "side": {"condition_init": "auto"},
        # On top of that alignment was sooner in no comparison and took a fifth of the time: whoever wants it says so.
        "align": {"enabled": False},
        # With it: at the learning rates of small models the decoder else silences itself (docs/method.md, the meter).
        "train": {"decoder_lr_multiplier": 0.1},
    },
}


def settings_of(name: Any) -> dict[str, dict[str, Any]]:
    """The settings of a preset; none for what is not the name of one, which the configuration's check refuses."""
    found = PRESETS.get(name, {}) if isinstance(name, str) else {}
    return {section: dict(values) for section, values in found.items()}


def refuse_idle(overrides: Sequence[str], preset: str | None) -> None:
    """Refuse settings of the alignment that a preset leaves without an effect, where nothing says whether to align.

    Args:
        overrides: ``key=value``, from left to right, of a configuration that does not align.
        preset: its preset, from wherever it is.

    Raises:
        LisaError: such as for ``preset=sooner align.weight=0.5``, whose weight would do nothing.
    """
    names = [item.partition("=")[0].strip() for item in overrides]
    after = names[len(names) - names[::-1].index("preset") :] if "preset" in names else names
    idle = [item for item in overrides if item.strip().startswith("align.") and item != "align.enabled=false"]
    if idle and "align.enabled" not in after and settings_of(preset).get("align", {}).get("enabled") is False:
        raise LisaError(
            f"{idle[0]} would do nothing, because the preset {preset!r} does not align",
            "Add align.enabled=true after the preset, or leave it out",
        )


def on_top(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with what is ``given`` on top, section by section; neither is touched, nor shared."""
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    for name, value in given.items():
        below = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[name] = {**below, **value} if both else value  # type: ignore[dict-item]
    return merged
