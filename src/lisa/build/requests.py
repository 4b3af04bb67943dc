"""What to generate: a picture per held-out sample of the runs, or per condition picture that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lisa.build import parts
from lisa.build.chosen import ChosenSide, differing
from lisa.common.errors import LisaError
from lisa.common.files import read_json
from lisa.data.images import list_images, load_rgb
from lisa.data.samples import stack_pictures
from lisa.sample.pictures import Request
from lisa.train.config import TrainConfig


def read_prompts(path: Path | None) -> dict[str, Any]:
    """Prompts by the name of the condition picture, from a JSON file.

    Raises:
        LisaError: it is not one, or not a mapping.
    """
    prompts = read_json(path) if path is not None else {}
    if not isinstance(prompts, dict):
        raise LisaError(f"{str(path)!r} is not a mapping of names to prompts", 'Write {"name": "prompt", ...}')
    return prompts


def held_out_requests(
    run: TrainConfig | None,
    sides: Sequence[ChosenSide],
    *,
    count: int | None,
    prompt: str | None,
    prompts: Mapping[str, Any],
    seed: int,
) -> list[Request]:
    """The held-out samples, each side network with the condition of its own run (else of ``run``).

    Raises:
        LisaError: a side network's run is not known, or the runs hold out different pictures.
    """
    configs = [side.config if side.config is not None else run for side in sides]
    unknown = [side.name for side, config in zip(sides, configs, strict=True) if config is None]
    if unknown:
        which = "" if len(sides) == 1 else f" for {unknown[0]!r}"
        raise LisaError(
            f"no condition image was named{which}",
            "Give --condition FILE_OR_FOLDER, or --run to use its held-out data"
            if len(sides) == 1
            else "Give --condition once for each side network, or name each by its run folder",
        )
    known = [config for config in configs if config is not None]
    opened = [parts.open_data(config.data, config.seed, check=False) for config in known]
    sets = [parts.Still(data.held_out, data.transform) for data in opened]
    for side, config, samples in zip(sides[1:], known[1:], sets[1:], strict=True):
        if list(samples.keys) != list(sets[0].keys):
            raise _different(sides[0], side, known[0], config)
    requests = []
    for number in range(len(sets[0]) if count is None else min(count, len(sets[0]))):
        first, *others = [samples[number] for samples in sets]
        conditions = []
        for side, config, sample in zip(sides, known, [first, *others], strict=True):
            if sample.condition is None:
                raise LisaError(f"held-out sample {sample.key!r} has no condition", "Check data.source of the run")
            if not np.array_equal(sample.image, first.image):
                raise _different(sides[0], side, known[0], config)
            conditions.append(sample.condition)
        words = prompts.get(first.key, prompt if prompt is not None else first.caption)
        requests.append(Request(first.key, str(words), conditions[0], seed + number, tuple(conditions[1:])))
    return requests


def _different(first: ChosenSide, other: ChosenSide, one: TrainConfig, two: TrainConfig) -> LisaError:
    settings = [f"{name} is {ours} and {theirs}" for name, (ours, theirs) in differing(one, two).items()]
    return LisaError(
        f"the runs {first.name!r} and {other.name!r} hold out different pictures"
        + (f": {'; '.join(settings)}" if settings else ""),
        "Use runs on the same pictures, split and size together, or give the conditions with --condition",
    )


def file_requests(
    paths: Sequence[Path],
    sides: Sequence[ChosenSide],
    *,
    count: int | None,
    prompt: str | None,
    prompts: Mapping[str, Any],
    seed: int,
) -> list[Request]:
    """Condition pictures: one folder (or file) per side network, in order, or one per condition that it stacks.

    Pictures in several folders belong together by their names.

    Raises:
        LisaError: not as many folders as conditions, none or unequal names in them, or no prompt.
    """
    stacks = [len(side.config.data.conditions) if side.config is not None else 1 for side in sides]
    if len(sides) == 1 and sides[0].config is None:
        stacks = [len(paths)]  # all are for the one there is; how many it reads is checked when it is loaded
    if sum(stacks) != len(paths):
        needed = ", ".join(f"{number} for {side.name!r}" for side, number in zip(sides, stacks, strict=True))
        raise LisaError(
            f"--condition was given {len(paths)} time{'s' if len(paths) > 1 else ''}, needed are {needed}",
            "Repeat --condition, in the order of the side networks",
        )
    columns = [_pictures_of(path) for path in paths]
    if not all(path.is_file() for path in paths):
        _require_same_names(paths, columns)
    ends = list(accumulate(stacks))
    requests: list[Request] = []
    for number, (key, file) in enumerate(list(columns[0].items())[:count]):
        names = (key, file.stem, file.name)
        words = next((prompts[name] for name in names if name in prompts), prompt)
        if words is None:
            raise LisaError(f"there is no prompt for {file.name!r}", "Give --prompt TEXT, or --prompts with all names")
        files = [column.get(key) or next(iter(column.values())) for column in columns]
        pictures = [load_rgb(each) for each in files]
        stacked = [
            stack_pictures(pictures[end - size : end], repr(key)) for end, size in zip(ends, stacks, strict=True)
        ]
        requests.append(Request(key, str(words), stacked[0], seed + number, tuple(stacked[1:])))
    return requests


def _pictures_of(path: Path) -> dict[str, Path]:
    """Name without suffix -> file, of a folder's pictures or of one picture."""
    if not path.exists():
        raise LisaError(f"there is no condition image or folder {str(path)!r}", "Check --condition")
    if not path.is_dir():
        return {path.stem: path}
    files = list_images(path)
    if not files:
        raise LisaError(f"there are no pictures in {str(path)!r}", "Check --condition")
    found: dict[str, Path] = {}
    for file in files:
        key = file.relative_to(path).with_suffix("").as_posix()
        if key in found:
            raise LisaError(f"{str(path)!r} holds two pictures named {key!r}", "Rename one: they would overwrite")
        found[key] = file
    return found


def _require_same_names(paths: Sequence[Path], columns: Sequence[Mapping[str, Path]]) -> None:
    for path, column in zip(paths[1:], columns[1:], strict=True):
        lone = sorted(columns[0].keys() ^ column.keys())
        if lone:
            there, lacking = (paths[0], path) if lone[0] in columns[0] else (path, paths[0])
            raise LisaError(
                f"{str(there)!r} holds {lone[0]!r}, {str(lacking)!r} does not",
                "Conditions of one picture must have the same name in all folders",
            )
