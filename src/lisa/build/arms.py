"""The arms of ``lisa compare``: small overlays on one configuration, by name or written out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lisa.common.errors import LisaError, choose, nearest
from lisa.compare.aligned import shared_by_arms
from lisa.train.presets import settings_of
from lisa.train.settings import flat, split_override

_ALIGNED = "align.enabled=true"


@dataclass(frozen=True)
class NamedArm:
    """What an arm is for, and what it sets."""

    purpose: str
    overrides: tuple[str, ...]
    layers: int | None = None  # how many layers it aligns, where that is of the model: see spread_layers


#: Name -> arm. A new one is one line here.
ARMS: Mapping[str, NamedArm] = MappingProxyType(
    {
        "plain": NamedArm("the usual training alone: the baseline", ("align.enabled=false",)),
        "lisa": NamedArm("likelihood score alignment, as the configuration has it", (_ALIGNED,)),
        "lisa-normalised": NamedArm(
            "every noise level counts alike in the alignment", (_ALIGNED, "align.weighting=normalised")
        ),
        "lisa-min-snr": NamedArm("low noise levels count less in the alignment", (_ALIGNED, "align.weighting=min-snr")),
        "shuffled": NamedArm(
            "control: aligned to the residual of another sample, so that a gain is not owed to an extra head",
            (_ALIGNED, "align.target=shuffled"),
        ),
        "multi-layer": NamedArm(
            "three layers instead of one: the default, one before it, one after it", (_ALIGNED,), 3
        ),
        "early-stop": NamedArm("alignment ends when it has done its job", (_ALIGNED, "align.schedule=until-done")),
    }
)


@dataclass(frozen=True)
class Arm:
    """An arm that was asked for: the name of its folder, and its overrides (``a.b=c``)."""

    name: str
    overrides: tuple[str, ...]
    layers: int | None = None

    def resolved(self, layers: Callable[[], tuple[Sequence[str], str]]) -> tuple[str, ...]:
        """Its overrides; ``layers`` gives the model's layer names and its default, asked only if the arm needs them."""
        if self.layers is None:
            return self.overrides
        return (*self.overrides, f"align.layer=[{', '.join(spread_layers(*layers()))}]")


def spread_layers(names: Sequence[str], default: str) -> list[str]:
    """The default layer, the one half-way to the first, and the one half-way to the last, in their order.

    Raises:
        LisaError: the default is none of ``names``.
    """
    if default not in names:
        raise LisaError(
            f"{default!r} is not among the side network's layers, so none can be said to lie before and after it",
            "Set align.layer to one of them, or name three in the arm: three:lisa;align.layer=[a, b, c]",
            names,
        )
    at = names.index(default)
    return [names[i] for i in sorted({at // 2, at, (at + len(names) - 1) // 2})]


def parse_arms(texts: Sequence[str]) -> list[Arm]:
    """Arms from their text: ``lisa``, ``align.weight=1``, ``strong:lisa-normalised;align.weight=1``.

    Parts between ``;`` are names of arms or overrides, applied from left to right; ``NAME:`` in front names the arm.
    An item may hold several arms between commas, outside of brackets.

    Raises:
        LisaError: an arm is unknown, sets what must be the same in all arms, or stands there twice; or there is none.
    """
    arms = [_parse(text.strip()) for item in texts for text in _split(item) if text.strip()]
    if not arms:
        raise LisaError("no arm was named", "Name some with --arms", ARMS)
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LisaError(f"there are two arms called {twice!r}", "Give one of them another name: NAME:overrides")
    return arms


def arm_names(texts: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The names alone, in order, for a report: of folders that there are, or as :func:`parse_arms` has them.

    Args:
        texts: as for :func:`parse_arms`; of an arm that has a folder its name is enough.
        folders: names of arms that there are runs of.

    Raises:
        LisaError: a name is of no folder and no known arm (one that is written out may be planned), or there is none.
    """
    known = list(dict.fromkeys([*folders, *ARMS]))
    parts = [text.strip() for item in texts for text in _split(item) if text.strip()]
    if not parts:
        raise LisaError("no arm was named", "Name some with --arms", known)
    written_out = re.compile("[:;=]")
    names = [
        _named_part(text)[0] if written_out.search(text) and text not in folders else choose("arm", text, known)
        for text in parts
    ]
    return list(dict.fromkeys(names))


def _split(item: str) -> list[str]:
    """At commas that are not inside of brackets."""
    return re.split(r",(?![^\[\]]*\])", item)


def _named_part(text: str) -> tuple[str, str]:
    """The arm's name, and what it sets: ``NAME:rest``, or what it sets is its name."""
    name, colon, rest = text.partition(":") if re.match(r"[^=;\[]+:", text) else ("", "", text)
    return _folder_name(name.strip() if colon else rest.strip(), text), rest


def _parse(text: str) -> Arm:
    name, rest = _named_part(text)
    overrides: list[str] = []
    layers: int | None = None
    for part in (part.strip() for part in rest.split(";")):
        if "=" in part:
            overrides.append(_checked(part, text))
            layers = None if part.startswith("align.layer=") else layers
        else:
            known = _named(part, text)
            overrides += known.overrides
            layers = known.layers or layers
    return Arm(name, tuple(overrides), layers)


def _named(name: str, text: str) -> NamedArm:
    if name not in ARMS:
        hint = nearest(name, ARMS)
        where = "" if name == text else f" in {text!r}"
        raise LisaError(
            f"unknown arm {name!r}{where}" + (f" ({hint})" if hint else ""),
            "Or write what it sets: NAME:section.key=value;section.key=value",
            ARMS,
        )
    return ARMS[name]


def _checked(override: str, text: str) -> str:
    name, value = split_override(override)
    for key in flat(settings_of(value)) if name == "preset" else [name]:
        if shared_by_arms(key) or key.partition(".")[0] in ("out", "seed", "resume", "overwrite", "log"):
            raise LisaError(
                f"the arm {text!r} sets {key}, which must be the same in all arms",
                "Set it for the whole comparison, before --arms; arms may set align, train, side and model",
            )
    return override


def _folder_name(name: str, text: str) -> str:
    """The arm's name, fit for a folder: brackets and blanks go, what separates becomes a ``_``."""
    fit = re.sub(r"[^\w.=+-]+", "_", re.sub(r"[\[\]\s'\"]", "", name)).strip("_")
    if not fit or fit.startswith(".") or fit in ("cache", "."):
        raise LisaError(f"the arm {text!r} cannot be called {name!r}", "Use letters, digits, '-', '_' and '.'")
    return fit
