"""``lisa generate``: pictures for condition images or for a run's held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lisa.build import parts
from lisa.common.errors import LisaError
from lisa.common.files import atomic_write, read_json, write_json
from lisa.common.runfolder import RunFolder
from lisa.data.images import list_images, load_rgb
from lisa.pairs import Pair, check_side_fits, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, fast_scheduler, sample_pictures
from lisa.train.config import ModelSettings, TrainConfig
from lisa.train.settings import load_settings


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

    The settings are kept in ``OUT/settings.json``: a folder made with others is refused, so that one folder never
    mixes two kinds of pictures.

    Returns:
        ``out``, ``made``, ``kept`` and ``settings``.

    Raises:
        LisaError: nothing to load, no condition or prompt, mismatched sizes, or a folder made with other settings.
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
    todo = _unfinished(options, requests, settings)
    if todo:
        pair = _load_pair(model, str(side))
        _check_sizes(todo, pair)
        pipeline = pair.pipeline()
        fast_scheduler(pipeline)
        write_json(options.out / "settings.json", settings)
        sampler = SamplerSettings(options.steps, options.guidance, options.scale, options.batch)
        for number, (request, picture) in enumerate(sample_pictures(pipeline, todo, sampler), start=1):
            with atomic_write(_file(options, request)) as target:
                Image.fromarray(picture).save(target, format="PNG")
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
    if options.condition is not None:
        requests = _from_files(options)
    elif config is not None:
        held_out = parts.open_data(config.data, config.seed)
        requests = []
        for i in range(len(held_out.held_out)):
            sample = parts.still(held_out.transform).sample(held_out.held_out[i], i)
            assert sample.condition is not None
            prompt = options.prompt if options.prompt is not None else sample.caption
            requests.append(Request(sample.key, prompt, sample.condition, options.seed + i))
    else:
        raise LisaError(
            "no condition image was named", "Give --condition FILE_OR_FOLDER, or --run to use its held-out data"
        )
    return requests[: options.count]


def _from_files(options: GenerateOptions) -> list[Request]:
    folder = options.condition
    assert folder is not None
    if not folder.exists():
        raise LisaError(f"there is no condition image or folder {str(folder)!r}", "Check --condition")
    files = list_images(folder) if folder.is_dir() else [folder]
    if not files:
        raise LisaError(f"there are no pictures in {str(folder)!r}", "Check --condition")
    prompts = read_json(options.prompts) if options.prompts is not None else {}
    requests = []
    for number, file in enumerate(files):
        prompt = prompts.get(file.stem, prompts.get(file.name, options.prompt))
        if prompt is None:
            raise LisaError(f"there is no prompt for {file.name!r}", "Give --prompt TEXT, or --prompts with all names")
        key = file.relative_to(folder).with_suffix("").as_posix() if folder.is_dir() else file.stem
        requests.append(Request(key, str(prompt), load_rgb(file), options.seed + number))
    return requests


def _unfinished(options: GenerateOptions, requests: list[Request], settings: dict[str, Any]) -> list[Request]:
    record = options.out / "settings.json"
    if options.out.is_file():
        raise LisaError(f"{str(options.out)!r} is a file", "Name a folder with --out")
    if options.overwrite:
        return requests
    there = [request for request in requests if _file(options, request).is_file()]
    if there and (not record.is_file() or read_json(record) != settings):
        raise LisaError(
            f"{str(options.out)!r} holds pictures made with other settings",
            "Name another folder with --out, or replace them with --overwrite",
        )
    return [request for request in requests if request not in there]


def _file(options: GenerateOptions, request: Request) -> Path:
    return options.out / f"{request.key}.png"


def _load_pair(model: ModelSettings, side: str) -> Pair:
    spec = pair_spec(model.pair)
    main = spec.load_main(parts.model_source(model), variant=model.variant, config=model.single_file_config)
    network = spec.load_side(side)
    check_side_fits(main, network)
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
        if height % pair.main.latent_factor or width % pair.main.latent_factor:
            raise LisaError(
                f"condition {request.key!r} is {width}x{height} pixels",
                f"Both sides must be multiples of {pair.main.latent_factor}",
            )
