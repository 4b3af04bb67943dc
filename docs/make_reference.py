"""Writes docs/configuration.md from the configuration models; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from lisa.train.config import TrainConfig
from lisa.train.pretrain.config import PretrainConfig
from lisa.train.settings import Settings

TARGET = Path(__file__).parent / "configuration.md"
HEAD = """# Every option

Made by `python docs/make_reference.py` from the models in `src/lisa/train/`; do not edit by hand.

Options stand in a YAML file, one section per heading, and can be overridden on the command line:
`lisa train config.yaml train.steps=500 align.weight=0.1`. From Python: `lisa.train({"train": {"steps": 500}})`.
"""


def rows(model: type[Settings]) -> str:
    """The options of one section as a table."""
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            continue
        default = field.get_default(call_default_factory=True)
        lines.append(f"| `{name}` | {type_name(field.annotation)} | `{show(default)}` | {field.description} |")
    return "\n".join(lines)


def type_name(annotation: Any) -> str:
    """A type as users read it."""
    if getattr(annotation, "__name__", "") == "Path":
        return "path"
    if annotation is type(None):
        return "empty"
    arguments = get_args(annotation)
    if not arguments:
        return getattr(annotation, "__name__", str(annotation))
    if hasattr(annotation, "__metadata__"):
        return type_name(arguments[0])
    if str(annotation).startswith("typing.Literal"):
        return ", ".join(f"`{value}`" for value in arguments)
    if getattr(annotation, "__origin__", None) in (tuple, list):
        return "list of " + type_name(arguments[0])
    return " or ".join(type_name(argument) for argument in arguments)


def show(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None:
        return "(empty)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return str(value)


def reference() -> str:
    """The whole page."""
    text = HEAD
    for title, config in (("lisa train", TrainConfig), ("lisa pretrain", PretrainConfig)):
        text += f"\n## `{title}`\n\n### (top level)\n\n{rows(config)}\n"
        for name, field in config.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                text += f"\n### {name}\n\n{field.annotation.__doc__.strip()}\n\n{rows(field.annotation)}\n"
    return text


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != reference())
    TARGET.write_text(reference(), encoding="utf-8")
