"""From a YAML file and ``key=value`` overrides to a checked configuration; every problem in one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from lisa.common.errors import LisaError, nearest


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, and every field has a description."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


Model = TypeVar("Model", bound=Settings)


def load_settings(model: type[Model], file: str | Path | None = None, overrides: Sequence[str] = ()) -> Model:
    """Merge ``file`` (YAML) and ``overrides`` (``"train.steps=500"``) and check them against ``model``.

    Raises:
        LisaError: the file is missing or not YAML, an override has no ``=``, or any key or value is wrong; all wrong
            keys and values are in the one message.
    """
    return check_settings(model, merge(file, overrides))


def merge(file: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The raw mapping of a YAML file with overrides on top."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        base = OmegaConf.create({})
        if file is not None:
            path = Path(file)
            if not path.is_file():
                raise LisaError(f"there is no configuration file {str(path)!r}", "Check the path")
            base = OmegaConf.load(path)
        for item in overrides:
            if "=" not in item:
                raise LisaError(f"the override {item!r} has no '='", "Write overrides as section.key=value")
        merged = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise LisaError(f"the configuration {str(file)!r} cannot be read: {error}", "Correct the YAML") from None
    if not isinstance(merged, dict):
        raise LisaError(f"the configuration {str(file)!r} is not a mapping of sections", "See docs/configuration.md")
    return {str(key): value for key, value in merged.items()}


def check_settings(model: type[Model], raw: dict[str, Any]) -> Model:
    """Check a raw mapping against ``model``; see :func:`load_settings`."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(model, item) for item in error.errors()]
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise LisaError(f"the configuration has {count}:\n  " + "\n  ".join(problems) + "\n") from None


def save_settings(settings: Settings, path: Path) -> None:
    """Write the complete configuration as YAML."""
    import yaml

    from lisa.common.files import atomic_write

    with atomic_write(path) as target:
        target.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _explain(model: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        hint = nearest(str(item["loc"][-1]), known)
        return f"{where}: no such setting" + (f", {hint}" if hint else f" (there are: {', '.join(known)})")
    value = "" if item["type"] == "missing" else f" (got {item['input']!r})"
    return f"{where or 'settings'}: {item['msg'].removeprefix('Value error, ')}{value}"


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Names of the settings of the section at ``location``."""
    section: Any = model
    for part in location:
        annotation = section.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), section)
    return list(section.model_fields)
