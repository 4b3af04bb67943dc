"""What to generate: a picture or clip per held-out sample of the runs, or per condition that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lisa.build import parts
from lisa.build.chosen import ChosenSide, differing
from lisa.common.errors import LisaError
from lisa.common.files import read_json
from lisa.data.images import list_images, load_rgb
from lisa.data.samples import ByteArray, describe_size, stack_pictures
from lisa.data.video import VIDEO_SUFFIXES, clip_info, frame_files, list_clips, read_frames
from lisa.pairs import PipelineCall
from lisa.sample.pictures import Request
from lisa.train.config import DataSettings, TrainConfig


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
    call: PipelineCall,
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
        requests.append(replace(Request.of(first, seed + number, call, str(words)), others=tuple(conditions[1:])))
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
    call: PipelineCall,
    image: Path | None,
    count: int | None,
    prompt: str | None,
    prompts: Mapping[str, Any],
    seed: int,
) -> list[Request]:
    """Conditions: one folder (or file) per side network, in order, or one per condition that it stacks.

    Pictures or clips in several folders belong together by their names. Of a clip the frames are taken that the side
    network's run would take, from its first on: as many, at the same rate; or all. ``image``: what clips go on from,
    where they do; one picture for all, or a folder of pictures named as they are.

    Raises:
        LisaError: not as many folders as conditions, none or unequal names in them, no prompt, or no picture to go on
            from, or one of another size.
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
    columns = [_clips_of(path) if call.clips else _pictures_of(path) for path in paths]
    if not all(path.is_file() or (call.clips and frame_files(path)) for path in paths):
        _require_same_names(paths, columns)
    data = sides[0].config.data if sides[0].config is not None else None
    begins = _beginnings(image, list(columns[0])) if call.begins == "frame" else {}
    ends = list(accumulate(stacks))
    requests: list[Request] = []
    for number, (key, file) in enumerate(list(columns[0].items())[:count]):
        names = (key, file.stem, file.name)
        words = "" if begins else next((prompts[name] for name in names if name in prompts), prompt)
        if words is None:
            raise LisaError(f"there is no prompt for {file.name!r}", "Give --prompt TEXT, or --prompts with all names")
        files = [column.get(key) or next(iter(column.values())) for column in columns]
        loaded = [_load_clip(each, data) if call.clips else (load_rgb(each), None) for each in files]
        pictures, rate = [picture for picture, _ in loaded], loaded[0][1]
        stacked = [
            stack_pictures(pictures[end - size : end], repr(key)) for end, size in zip(ends, stacks, strict=True)
        ]
        request = Request(key, str(words), stacked[0], seed + number, tuple(stacked[1:]))
        request = request if rate is None else replace(request, rate=rate)
        requests.append(_begun(request, begins[key]) if begins else request)
    return requests


def shorter_clips(requests: Sequence[Request], sides: Sequence[ChosenSide]) -> str | None:
    """What to say where conditions give fewer frames than the side network that they are cut for was trained on."""
    trained = (sides[0].config.data.frames if sides[0].config is not None else None) or 0
    frames = {request.key: min(map(len, request.conditions)) for request in requests}
    short = [key for key, count in frames.items() if count < trained]
    if not short:
        return None
    most = f"{len(short)} of {len(requests)} conditions give fewer frames than the {trained} of training"
    return f"{most}: {short[0]!r} gives {frames[short[0]]}, and so many will be made"


def _load_clip(file: Path, data: DataSettings | None) -> tuple[ByteArray, float | None]:
    """The frames to take of a clip, and how many of them there are per second; None: nothing tells."""
    info, sampling = clip_info(file), None if data is None else parts.sampling_of(data)
    wanted = range(info.frames) if sampling is None else sampling.offsets(info.rate)
    frames = read_frames(file, [place for place in wanted if place < info.frames], (0, 0, 0))
    if data is None or info.rate is None:
        return frames, info.rate if data is None else parts.known_rate(data)
    return frames, info.rate if data.frame_rate is None else min(info.rate, data.frame_rate)


def _beginnings(image: Path | None, keys: Sequence[str]) -> dict[str, Path]:
    """The picture that each clip goes on from."""
    if image is None:
        raise LisaError("this main network goes on from a picture", "Give it with --image FILE_OR_FOLDER")
    found = _pictures_of(image, "--image")
    if image.is_file():
        return dict.fromkeys(keys, image)
    missing = [key for key in keys if key not in found]
    if missing:
        raise LisaError(f"{str(image)!r} holds no picture {missing[0]!r}", "Name pictures as the clips are named")
    return found


def _begun(request: Request, file: Path) -> Request:
    frame, condition = load_rgb(file), request.condition
    if frame.shape[:2] != condition.shape[1:3]:
        raise LisaError(
            f"{str(file)!r} is {describe_size(frame)}, the condition {request.key!r} {describe_size(condition)}",
            "The picture that a clip goes on from is as large as its condition",
        )
    return replace(request, frame=frame)


def _clips_of(path: Path) -> dict[str, Path]:
    """Name without suffix -> folder of frames or video, of a folder's clips or of one clip."""
    if not path.exists():
        raise LisaError(f"there is no condition clip or folder {str(path)!r}", "Check --condition")
    if path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES:
        raise LisaError(
            f"{str(path)!r} is no clip", "Name a folder of frames, a video, or a folder of these", VIDEO_SUFFIXES
        )
    if path.is_file() or frame_files(path):
        return {path.stem if path.is_file() else path.resolve().name: path}
    clips = list_clips(path)
    if not clips:
        raise LisaError(f"there are no clips in {str(path)!r}", "Check --condition")
    return _by_name(path, clips, "clips")


def _pictures_of(path: Path, option: str = "--condition") -> dict[str, Path]:
    """Name without suffix -> file, of a folder's pictures or of one picture."""
    if not path.exists():
        raise LisaError(f"there is no condition image or folder {str(path)!r}", f"Check {option}")
    if not path.is_dir():
        return {path.stem: path}
    files = list_images(path)
    if not files:
        raise LisaError(f"there are no pictures in {str(path)!r}", f"Check {option}")
    return _by_name(path, files, "pictures")


def _by_name(folder: Path, files: Sequence[Path], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder)
        key = (name if file.is_dir() else name.with_suffix("")).as_posix()
        if key in found:
            raise LisaError(f"{str(folder)!r} holds two {what} named {key!r}", "Rename one: they would overwrite")
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
