"""From a YAML file and ``key=value`` overrides to a checked configuration; every problem in one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lisa.common.errors import LisaError, nearest
from lisa.common.mappings import flat
from lisa.train.presets import settings_of

Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, and every field has a description."""

    # On the command line resume=5 and default_caption=7 arrive as numbers.
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True)


def one_of(value: str, known: Iterable[str]) -> str:
    """``value``, if it is one of the known names; else what pydantic makes a problem of."""
    names = list(known)
    if value not in names:
        raise ValueError(", ".join(filter(None, [f"must be one of {', '.join(names)}", nearest(value, names)])))
    return value


Model = TypeVar("Model", bound=Settings)


def load_settings(model: type[Model], file: str | Path | None = None, overrides: Sequence[str] = ()) -> Model:
    """Merge ``file`` (YAML) and ``overrides`` (``"train.steps=500"``) and check them against ``model``.

    Raises:
        LisaError: the file is missing or not YAML, an override has no ``=``, or any key or value is wrong; all wrong
            keys and values are in the one message.
    """
    return check_settings(model, merge(file, overrides, presets="preset" in model.model_fields))


def merge(file: str | Path | None, overrides: Sequence[str], *, presets: bool = True) -> dict[str, Any]:
    """The raw mapping of a YAML file with overrides on top, from left to right; a preset sets all that it names."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        base = OmegaConf.create({})
        if file is not None:
            path = Path(file)
            if not path.is_file():
                raise LisaError(f"there is no configuration file {str(path)!r}", "Check the path")
            base = OmegaConf.load(path)
        if not isinstance(base, DictConfig):
            raise LisaError(
                f"the configuration {str(file)!r} is not a mapping of sections", "See docs/configuration.md"
            )
        given = []
        for item in overrides:
            name, _ = split_override(item)
            one = OmegaConf.from_dotlist([item])
            given += [OmegaConf.create(settings_of(one["preset"]))] if presets and name == "preset" else []
            given.append(one)
        merged = OmegaConf.to_container(OmegaConf.merge(base, *given), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as error:
        what = "the overrides cannot be read" if file is None else f"the configuration {str(file)!r} cannot be read"
        raise LisaError(f"{what}: {' '.join(str(error).split())}", "Correct the YAML, or the overrides") from None
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def split_override(item: str) -> tuple[str, str]:
    """(dotted name, value) of ``section.key=value``.

    Raises:
        LisaError: there is no ``=``, or no name before it.
    """
    name, sign, value = item.partition("=")
    if not name.strip() or not sign:
        missing = "name before its '='" if sign else "'='"
        raise LisaError(f"the override {item!r} has no {missing}", "Write overrides as section.key=value")
    return name.strip(), value


def check_settings(model: type[Model], raw: dict[str, Any]) -> Model:
    """Check a raw mapping against ``model``; see :func:`load_settings`."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found: dict[tuple[str, str], list[str]] = {}
        for item in error.errors():  # a union gives one error per member
            where, message, value = _explain(model, item)
            found.setdefault((where, value), []).append(message)
        problems = [f"{where}{'; '.join(messages)}{value}" for (where, value), messages in found.items()]
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise LisaError(f"the configuration has {count}:\n  " + "\n  ".join(problems)) from None


def save_settings(settings: Settings, path: Path) -> None:
    """Write the complete configuration as YAML."""
    import yaml

    from lisa.common.files import atomic_write

    with atomic_write(path) as target:
        target.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def changed_settings(path: Path, settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings in which ``settings`` differs from the YAML file at ``path``: dotted name -> (there, here).

    What the file does not have, as one that an older version wrote may not, has its default there.
    """
    import yaml

    if not path.is_file():
        return {}
    defaults, new = (flat(each.model_dump(mode="json")) for each in (type(settings)(), settings))
    old = {**defaults, **flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})}
    names = [name for name in new if name not in ("resume", "overwrite", "out")]
    return {name: (old[name], new[name]) for name in names if old[name] != new[name]}


def _explain(model: type[BaseModel], item: Any) -> tuple[str, str, str]:
    """Where ("section.key: "), what is wrong, and the value (" (got 3)")."""
    where = ".".join(str(part) for part in _known_part(model, item["loc"]))
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        name = str(item["loc"][-1])
        hint = nearest(name, known) or _elsewhere(model, name, where)
        return f"{where}: ", "no such setting" + (f", {hint}" if hint else f" (there are: {', '.join(known)})"), ""
    # A whole section as the value would bury the message.
    value = (
        "" if item["type"] == "missing" or isinstance(item["input"], dict | BaseModel) else f" (got {item['input']!r})"
    )
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: " if where else "", message, value


def _known_part(model: type[BaseModel], location: Sequence[Any]) -> list[Any]:
    """``location`` without what pydantic adds to it for the members of a union (``size.int``)."""
    section: Any = model
    for depth, part in enumerate(location):
        if section is None or part not in section.model_fields:
            return list(location[: depth + 1] if section is not None or isinstance(part, int) else location[:depth])
        section = _section(section, part)
    return list(location)


def _elsewhere(model: type[BaseModel], name: str, wrong: str) -> str:
    """A setting of that name in another section."""
    sections = {field: section for field in model.model_fields if (section := _section(model, field)) is not None}
    places = [f"{field}.{name}" for field, section in sections.items() if name in section.model_fields]
    places += [name] if name in model.model_fields and name != wrong else []
    return f"did you mean {' or '.join(map(repr, places))}?" if places else ""


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Names of the settings of the section at ``location``."""
    section: Any = model
    for part in location:
        section = _section(section, part) or section
    return list(section.model_fields)


def _section(model: type[BaseModel], field: Any) -> type[BaseModel] | None:
    """The model of a section, or None where ``field`` is a plain setting."""
    annotation = model.model_fields[field].annotation
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
