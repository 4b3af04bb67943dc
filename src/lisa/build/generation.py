"""``lisa generate``: pictures for condition images or for a run's held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lisa.build import parts
from lisa.common.errors import LisaError
from lisa.common.files import read_json, write_json
from lisa.common.runfolder import RunFolder
from lisa.data.folders import hash_file
from lisa.data.images import list_images, load_rgb, read_note, save_png
from lisa.data.samples import content_hash
from lisa.pairs import Pair, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, fast_scheduler, sample_pictures
from lisa.train.config import ModelSettings, TrainConfig
from lisa.train.settings import load_settings

_STAMP = "lisa-generate"  # in the PNG's text chunks


@dataclass(frozen=True)
class GenerateOptions:
    """What ``lisa generate`` was asked for; see its help."""

    run: Path | None = None
    side: str | None = None
    model: str | None = None
    condition: Path | None = None
    prompt: str | None = None
    prompts: Path | None = None
    out: Path = Path("generated")
    count: int | None = None
    steps: int = 20
    guidance: float = 3.0
    scale: float = 1.0
    seed: int = 0
    batch: int = 8
    overwrite: bool = False


def read_run(run: Path) -> TrainConfig:
    """The configuration of a run folder.

    Raises:
        LisaError: it is no run folder.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise LisaError(
            f"{str(run)!r} is not a run folder (it has no config.yaml)", "Name the folder that lisa train wrote"
        )
    return load_settings(TrainConfig, folder.config)


def generate(options: GenerateOptions, progress: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Make the pictures that are not there yet.

    Every picture carries a stamp of all that decides what it looks like (networks, sampling, prompt, condition, seed).
    One that was made otherwise is refused, so that a folder never mixes two kinds of pictures.

    Returns:
        ``out``, ``made``, ``kept`` and ``settings``.

    Raises:
        LisaError: nothing to load, no condition or prompt, mismatched sizes, or a picture made with other settings.
    """
    config = read_run(options.run) if options.run is not None else None
    model, side = _networks(options, config)
    requests = _requests(options, config)
    settings = {
        "model": model.path,
        "side": str(side),
        "steps": options.steps,
        "guidance": options.guidance,
        "scale": options.scale,
    }
    stamps = _stamps(requests, {**settings, "weights": _weights(Path(side))})
    todo = _unfinished(options, requests, stamps)
    if todo:
        pair = _load_pair(model, str(side))
        _check_sizes(todo, pair)
        pipeline = pair.pipeline().to(_device())
        fast_scheduler(pipeline)
        write_json(options.out / "settings.json", settings)
        sampler = SamplerSettings(options.steps, options.guidance, options.scale, options.batch)
        for number, (request, picture) in enumerate(sample_pictures(pipeline, todo, sampler, pair.spec.call), start=1):
            save_png(picture, _file(options, request), {_STAMP: stamps[request.key]})
            if progress is not None:
                progress(f"{number}/{len(todo)}  {_file(options, request)}")
    return {"out": str(options.out), "made": len(todo), "kept": len(requests) - len(todo), "settings": settings}


def _networks(options: GenerateOptions, config: TrainConfig | None) -> tuple[ModelSettings, str | Path]:
    side: str | Path | None = options.side
    if side is None and options.run is not None:
        side = RunFolder(options.run).side_network
        if not side.is_dir():
            raise LisaError(
                f"the run {str(options.run)!r} has no side network yet", "Let the training finish (--resume)"
            )
    if side is None:
        raise LisaError("no side network was named", "Give --run RUN or --side FOLDER")
    base = config.model if config is not None else ModelSettings()
    if options.model is not None:
        base = base.model_copy(update={"path": options.model})
    elif config is None:
        raise LisaError("no main network was named", "Give --model (tiny-sd, a folder or a Hub name) beside --side")
    return base, side


def _requests(options: GenerateOptions, config: TrainConfig | None) -> list[Request]:
    prompts = _prompts(options)
    if options.condition is not None:
        return _from_files(options, prompts)
    if config is None:
        raise LisaError(
            "no condition image was named", "Give --condition FILE_OR_FOLDER, or --run to use its held-out data"
        )
    opened = parts.open_data(config.data, config.seed, check=False)
    samples = parts.Still(opened.held_out, opened.transform)
    requests = []
    for number in range(len(samples) if options.count is None else min(options.count, len(samples))):
        sample = samples[number]
        if sample.condition is None:
            raise LisaError(f"held-out sample {sample.key!r} has no condition", "Check data.source of the run")
        prompt = prompts.get(sample.key, options.prompt if options.prompt is not None else sample.caption)
        requests.append(Request(sample.key, str(prompt), sample.condition, options.seed + number))
    return requests


def _prompts(options: GenerateOptions) -> dict[str, Any]:
    prompts = read_json(options.prompts) if options.prompts is not None else {}
    if not isinstance(prompts, dict):
        raise LisaError(
            f"{str(options.prompts)!r} is not a mapping of names to prompts", 'Write {"name": "prompt", ...}'
        )
    return prompts


def _from_files(options: GenerateOptions, prompts: dict[str, Any]) -> list[Request]:
    folder = options.condition
    assert folder is not None
    if not folder.exists():
        raise LisaError(f"there is no condition image or folder {str(folder)!r}", "Check --condition")
    files = list_images(folder) if folder.is_dir() else [folder]
    if not files:
        raise LisaError(f"there are no pictures in {str(folder)!r}", "Check --condition")
    requests: list[Request] = []
    for number, file in enumerate(files[: options.count]):
        key = file.relative_to(folder).with_suffix("").as_posix() if folder.is_dir() else file.stem
        if any(request.key == key for request in requests):
            raise LisaError(f"{str(folder)!r} holds two pictures named {key!r}", "Rename one: they would overwrite")
        prompt = next((prompts[name] for name in (key, file.stem, file.name) if name in prompts), options.prompt)
        if prompt is None:
            raise LisaError(f"there is no prompt for {file.name!r}", "Give --prompt TEXT, or --prompts with all names")
        requests.append(Request(key, str(prompt), load_rgb(file), options.seed + number))
    return requests


def _stamps(requests: list[Request], settings: dict[str, Any]) -> dict[str, str]:
    """For each picture, by key: a hash of all that decides what it looks like."""
    return {
        r.key: content_hash(
            "generate", settings, r.prompt, r.seed, r.condition.shape, sha256(r.condition.tobytes()).hexdigest()
        )
        for r in requests
    }


def _weights(side: Path) -> str | None:
    """A hash of the side network's weights, where they are on this disk: a run trained again is another network."""
    files = sorted(side.glob("*.safetensors")) or sorted(side.glob("side_network/*.safetensors"))
    files = [side] if side.is_file() else files
    return content_hash([hash_file(file) for file in files]) if files else None


def _unfinished(options: GenerateOptions, requests: list[Request], stamps: dict[str, str]) -> list[Request]:
    if options.out.is_file():
        raise LisaError(f"{str(options.out)!r} is a file", "Name a folder with --out")
    if options.overwrite:
        return requests
    todo = []
    for request in requests:
        file = _file(options, request)
        stamp = read_note(file, _STAMP)
        if file.is_file() and stamp != stamps[request.key]:
            raise LisaError(
                f"{str(file)!r} was not made with these settings (networks, sampling, prompt, condition, seed)",
                "Name another folder with --out, or replace the pictures with --overwrite",
            )
        if stamp is None:
            todo.append(request)
    return todo


def _file(options: GenerateOptions, request: Request) -> Path:
    return options.out / f"{request.key}.png"


def _device() -> torch.device:
    """The device accelerate would train on."""
    from accelerate import PartialState

    return PartialState().device


def _load_pair(model: ModelSettings, side: str) -> Pair:
    spec = pair_spec(model.pair)
    main = spec.load_main(parts.model_source(model), variant=model.variant, config=model.single_file_config)
    network = spec.load_fitting_side(main, side)
    network.module.eval()
    return Pair(spec, main, network)


def _check_sizes(requests: list[Request], pair: Pair) -> None:
    """Every batch has one size, and every size suits the latents."""
    first = requests[0]
    for request in requests:
        height, width = request.condition.shape[:2]
        if request.condition.shape != first.condition.shape:
            raise LisaError(
                f"condition {request.key!r} is {width}x{height} pixels, {first.key!r} is "
                f"{first.condition.shape[1]}x{first.condition.shape[0]}",
                "Generate condition images of different sizes in separate calls",
            )
        if height % pair.main.size_multiple or width % pair.main.size_multiple:
            raise LisaError(
                f"condition {request.key!r} is {width}x{height} pixels",
                f"Both sides must be multiples of {pair.main.size_multiple}",
            )
