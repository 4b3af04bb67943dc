"""``lisa generate``: pictures or clips for conditions or for a run's held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lisa.build import parts
from lisa.build.checks import check_positions, choose_control_type
from lisa.build.chosen import ChosenSide, choose_model, choose_sides, control_types, read_run
from lisa.build.outputs import ClipFiles, Outputs, PictureFiles
from lisa.build.requests import file_requests, held_out_requests, read_prompts, shorter_clips
from lisa.build.sampling_choices import check_sampling, choose_dtype, choose_quantize
from lisa.common.errors import LisaError
from lisa.common.files import write_json
from lisa.data.folders import hash_file
from lisa.data.samples import content_hash
from lisa.mains.base import MainNetwork
from lisa.mains.casting import cast
from lisa.mains.weights import Weights
from lisa.pairs import PairSpec, PipelineCall, pair_spec
from lisa.pairs.fit import check_conditions
from lisa.pairs.several import check_container, joint_pipeline
from lisa.sample.pictures import Request, SamplerSettings, sample_requests, set_solver
from lisa.sides.base import SideNetwork, SideOptions
from lisa.train.config import TrainConfig
from lisa.train.network_settings import ModelSettings

#: Between the seeds of two pictures of one condition: more than there are conditions.
_SEEDS_APART = 1_000_000


@dataclass(frozen=True)
class GenerateOptions:
    """What ``lisa generate`` was asked for; see its help.

    Attributes:
        side: side networks instead of the run's, as ``A`` or ``A=0.8``; several are used together.
        condition: condition pictures instead of held-out data: a file or folder per side network (and per condition
            that it stacks), in order. Of a clip a folder of frames or a video, or a folder of these.
        image: for conditions of clips that go on from a picture: this picture, or a folder of them.
        rate: frames per second that such a network is told; None: the clip's own, or what the run was trained at.
        motion: likewise its motion bucket id, 127 for conditions.
        negative_prompt: what guidance leads away from; None: from no text.
        solver: one of :data:`lisa.sample.pictures.SOLVERS`; None: the fast one where the model can do with it.
        scale: multiplies the weights of all side networks.
        per_condition: pictures of every condition, with seeds of their own: above 1 in folders ``group-1``,
            ``group-2`` ... of ``out``, which :func:`lisa.build.evaluation.evaluate` judges together.
        dtype: in which the networks are read and run (the VAE in float32): ``float32``, ``bfloat16`` or ``float16``;
            None: what the run's main network was trained in, or float32.
        quantize: ``none``, ``int8`` or ``nf4``: of the main network; None: as the run's was trained, where this machine
            can do it.
    """

    run: Path | None = None
    side: str | Sequence[str] | None = None
    model: str | None = None
    pair: str | None = None
    condition: Path | Sequence[Path] | None = None
    image: Path | None = None
    rate: float | None = None
    motion: float | None = None
    prompt: str | None = None
    prompts: Path | None = None
    out: Path = Path("generated")
    count: int | None = None
    steps: int = 20
    guidance: float = 3.0
    negative_prompt: str | None = None
    solver: str | None = None
    scale: float = 1.0
    per_condition: int = 1
    seed: int = 0
    batch: int = 8
    dtype: str | None = None
    quantize: str | None = None
    overwrite: bool = False


def generate(options: GenerateOptions, progress: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Make the pictures, or clips, that are not there yet.

    Of a clip there are a folder of frames and an animation. Every picture carries a stamp of all that decides what it
    looks like (networks, sampling, prompt, condition, seed). One that was made otherwise is refused, so that a folder
    never mixes two kinds of pictures.

    Returns:
        ``out``, ``made``, ``kept`` and ``settings``.

    Raises:
        LisaError: nothing to load, no condition or prompt, mismatched sizes, a type that the family cannot run in, a
            solver or negative prompt that makes no difference to it, or a picture made with other settings.
    """
    run = read_run(options.run) if options.run is not None else None
    sides = choose_sides(options.run, _listed(options.side))
    model = choose_model(options.model, run, sides, options.pair)
    spec = pair_spec(model.pair)
    if len(sides) > 1:
        check_container(spec)
    runs = [run, *[side.config for side in sides]]
    check_sampling(options.solver, options.negative_prompt, options.guidance, spec)
    dtype = choose_dtype(options.dtype, spec, runs)
    quantize = choose_quantize(options.quantize, dtype, model, runs, progress)
    requests = _requests(options, run, sides, spec.call)
    outputs: Outputs = ClipFiles(options.out) if spec.call.clips else PictureFiles(options.out)
    scales = tuple(options.scale * side.weight for side in sides)
    settings: dict[str, Any] = {
        "model": model.path,
        "side": _one_or_all([side.source for side in sides]),
        "steps": options.steps,
        "guidance": options.guidance,
        "scale": _one_or_all(scales),
    }
    if options.negative_prompt is not None:
        settings["negative_prompt"] = options.negative_prompt
    if options.solver is not None:
        settings["solver"] = options.solver
    if dtype != "float32":
        settings["dtype"] = dtype
    if quantize != "none":
        settings["quantize"] = quantize
    kinds = control_types(run, sides)
    if any(kind is not None for kind in kinds):
        settings["control_type"] = _one_or_all(kinds)
    settings["weights"] = _one_or_all([_weights(Path(side.source)) for side in sides])
    wanted = _several(requests, options.per_condition)
    stamps = _stamps(wanted, requests, settings)
    todo = _unfinished(options, wanted, stamps, outputs)
    if todo:
        weights = Weights(getattr(torch, dtype), quantize)
        pipeline, call = _load_pipeline(model, spec, sides, kinds, requests, weights)
        if progress is not None and spec.call.clips and (note := shorter_clips(requests, sides)):
            progress(note)
        pipeline.to(_device())
        set_solver(pipeline, options.solver)
        rates = {request.rate for request in requests} if spec.call.clips else set()
        told = {"scheduler": type(pipeline.scheduler).__name__, **({"rate": rates.pop()} if len(rates) == 1 else {})}
        for folder in _groups(options.per_condition):
            write_json(options.out / folder / "settings.json", {**settings, **told})
        scale = _one_or_all(scales, tuple)
        sampler = SamplerSettings(options.steps, options.guidance, scale, options.batch, options.negative_prompt)
        for number, (request, made) in enumerate(sample_requests(pipeline, todo, sampler, call), start=1):
            outputs.write(request, made, stamps[request.key])
            if progress is not None:
                progress(f"{number}/{len(todo)}  {outputs.place(request)}")
    return {"out": str(options.out), "made": len(todo), "kept": len(wanted) - len(todo), "settings": settings}


def _requests(
    options: GenerateOptions, run: TrainConfig | None, sides: Sequence[ChosenSide], call: PipelineCall
) -> list[Request]:
    if options.per_condition < 1:
        raise LisaError(f"--per-condition is {options.per_condition}", "Give the number of pictures, at least 1")
    conditions = [Path(path) for path in _listed(options.condition)]
    if options.image is not None and not (conditions and call.begins == "frame"):
        raise LisaError(
            "--image is for clips that go on from a picture, with --condition",
            "Leave it out: held-out clips have their own first frames, and other networks read a prompt",
        )
    if call.begins == "frame" and (options.prompt is not None or options.prompts is not None):
        raise LisaError("this main network reads a picture and no prompt", "Leave out --prompt and --prompts")
    told = {name: value for name in ("rate", "motion") if (value := getattr(options, name)) is not None}
    if told and call.begins != "frame":
        raise LisaError(f"this main network is told no {next(iter(told))}", f"Leave out --{next(iter(told))}")
    if told.get("rate", 1.0) <= 0:
        raise LisaError(f"--rate is {told['rate']:g}", "Give frames per second, above 0")
    prompts = read_prompts(options.prompts)
    wanted = {"call": call, "count": options.count, "prompt": options.prompt, "prompts": prompts, "seed": options.seed}
    if conditions:
        requests = file_requests(conditions, sides, image=options.image, **wanted)
    else:
        requests = held_out_requests(run, sides, **wanted)
    return [replace(request, **told) for request in requests]


def _several(requests: Sequence[Request], per_condition: int) -> list[Request]:
    """What is to be made: of each request so many, each with a seed and in a folder of its own."""
    return [
        replace(request, key=f"{group}{request.key}", seed=request.seed + number * _SEEDS_APART)
        for number, group in enumerate(_groups(per_condition))
        for request in requests
    ]


def _groups(per_condition: int) -> list[str]:
    """What precedes the names of what is made; nothing where there is one of each."""
    return [""] if per_condition == 1 else [f"group-{number}/" for number in range(1, per_condition + 1)]


def _listed(given: str | Path | Sequence[Any] | None) -> list[Any]:
    return [] if given is None else [given] if isinstance(given, str | Path) else list(given)


def _one_or_all(values: Sequence[Any], kind: Callable[[Sequence[Any]], Any] = list) -> Any:
    """A single value as such: with one side network, records are as they were before there could be several."""
    return values[0] if len(values) == 1 else kind(values)


def _stamps(wanted: Sequence[Request], requests: Sequence[Request], settings: dict[str, Any]) -> dict[str, str]:
    """For each picture, by key: a hash of all that decides what it looks like.

    ``wanted`` are ``requests`` once per group, in their order: what they are given is hashed once.
    """
    given = [(*[part for each in r.conditions for part in _content(each)], *_begin(r)) for r in requests]
    pairs = zip(wanted, cycle(given), strict=False)
    return {r.key: content_hash("generate", settings, r.prompt, r.seed, *parts) for r, parts in pairs}


def _begin(request: Request) -> tuple[Any, ...]:
    """What a clip goes on from, and how."""
    return () if request.frame is None else (*_content(request.frame), request.rate, request.motion)


def _content(condition: np.ndarray) -> tuple[Any, str]:
    return condition.shape, sha256(condition.tobytes()).hexdigest()


def _weights(side: Path) -> str | None:
    """A hash of the side network's weights, where they are on this disk: a run trained again is another network."""
    files = sorted(side.glob("*.safetensors")) or sorted(side.glob("side_network/*.safetensors"))
    files = [side] if side.is_file() else files
    return content_hash([hash_file(file) for file in files]) if files else None


def _unfinished(
    options: GenerateOptions, requests: list[Request], stamps: dict[str, str], outputs: Outputs
) -> list[Request]:
    if options.out.is_file():
        raise LisaError(f"{str(options.out)!r} is a file", "Name a folder with --out")
    if options.overwrite:
        return requests
    todo = []
    for request in requests:
        place, stamp = outputs.place(request), outputs.stamp(request)
        if place.exists() and stamp != stamps[request.key]:
            raise LisaError(
                f"{str(place)!r} was not made with these settings (networks, sampling, prompt, condition, seed)",
                "Name another folder with --out, or replace the pictures with --overwrite",
            )
        if stamp is None:
            todo.append(request)
    return todo


def _device() -> torch.device:
    """The device accelerate would train on."""
    from accelerate import PartialState

    return PartialState().device


def _load_pipeline(
    model: ModelSettings,
    spec: PairSpec,
    sides: Sequence[ChosenSide],
    kinds: Sequence[int | None],
    requests: Sequence[Request],
    weights: Weights,
) -> tuple[Any, PipelineCall]:
    """The pipeline around all networks, which suit each other and the conditions; and how to call it."""
    files = {"variant": model.variant, "config": model.single_file_config}
    main = spec.load_main(parts.model_source(model), **files, weights=weights)
    networks = []
    for side, kind, condition in zip(sides, kinds, requests[0].conditions, strict=True):
        count = condition.shape[-1] // 3
        network = spec.load_fitting_side(main, side.source, SideOptions(conditions=count))
        check_conditions(spec, network, count)
        choose_control_type(network, kind)
        cast(network.module, network.module.device, weights.dtype)
        network.module.eval()
        networks.append(network)
    if spec.call.clips:
        for request in requests:
            main.latent_frames(len(request.condition))
    _check_sizes(requests, main, networks)
    return joint_pipeline(spec, main, networks), spec.call_with(main, networks)


def _check_sizes(requests: Sequence[Request], main: MainNetwork, sides: Sequence[SideNetwork]) -> None:
    """Every batch has one size, for all side networks, and every size suits the latents and positions.

    Clips are made one by one, so that each may have its own.
    """
    multiple = main.size_multiple
    for request in requests:
        tall, wide = (request if main.video else requests[0]).condition.shape[-3:-1]
        for condition in request.conditions:
            height, width = condition.shape[-3:-1]
            if (height, width) != (tall, wide):
                raise LisaError(
                    f"condition {request.key!r} is {width}x{height} pixels, {requests[0].key!r} is {wide}x{tall}",
                    "Generate condition images of different sizes in separate calls",
                )
            if height % multiple or width % multiple:
                raise LisaError(
                    f"condition {request.key!r} is {width}x{height} pixels",
                    f"Both sides must be multiples of {multiple}",
                )
        check_positions((tall, wide), main, *sides)
