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


def refuse_idle(overrides: Sequence[str]) -> None:
    """Refuse settings of the alignment beside a preset that does not align, where nothing says whether to.

    Raises:
        LisaError: such as for ``preset=sooner align.weight=0.5``, whose weight would do nothing.
    """
    values = {name.strip(): value.strip("'\" ") for name, _, value in (item.partition("=") for item in overrides)}
    ours = settings_of(values.get("preset")).get("align", {})
    idle = next((name for name in values if name.startswith("align.")), None)
    if idle is not None and ours.get("enabled") is False and "align.enabled" not in values:
        raise LisaError(
            f"{idle}={values[idle]} would do nothing, because the preset {values['preset']!r} does not align",
            f"Add align.enabled=true, or leave {idle} out",
        )


def on_top(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with what is ``given`` on top, section by section; neither is touched, nor shared."""
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    for name, value in given.items():
        below = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[name] = {**below, **value} if both else value  # type: ignore[dict-item]
    return merged
