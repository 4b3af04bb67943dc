"""Sampling pictures and clips with a diffusers pipeline, one seed each: a batch gives what single calls give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lisa.common.errors import LisaError, choose
from lisa.core.frames import frames_together
from lisa.data.samples import Sample
from lisa.pairs import PipelineCall
from lisa.pairs.base import FRAME_RATE, MOTION
from lisa.sample.precision import in_own_precision


class BrokenPictures(LisaError):
    """What was sampled is not finite: it would be black pictures."""


@dataclass(frozen=True)
class Request:
    """One picture to make.

    ``condition`` is uint8 (H, W, 3) at the size of the picture, (H, W, 3 n) for n stacked ones; ``others`` are those of
    the second side network and the further ones, where several are used together. Of a clip ``condition`` is
    (F, H, W, 3 n).

    Attributes:
        frame: uint8 (H, W, 3), with which the clip begins, of models that go on from a picture; they read no prompt.
        rate: frames per second of a clip; these models are told it.
        motion: how much moves, as they count it.
    """

    key: str
    prompt: str
    condition: np.ndarray
    seed: int
    others: tuple[np.ndarray, ...] = ()
    frame: np.ndarray | None = None
    rate: float = FRAME_RATE
    motion: float = MOTION

    @property
    def conditions(self) -> tuple[np.ndarray, ...]:
        """One per side network."""
        return (self.condition, *self.others)

    @classmethod
    def of(cls, sample: Sample, seed: int, call: PipelineCall, prompt: str | None = None) -> Request:
        """What a sample asks for: its condition, under its caption (or ``prompt``), or from its first frame on."""
        assert sample.condition is not None, "check_source refuses sources without conditions"
        words = sample.caption if prompt is None else prompt
        pace = {"rate": sample.rate, "motion": sample.motion}
        told = {name: value for name, value in pace.items() if value is not None}
        frame = np.ascontiguousarray(sample.image[0]) if call.begins == "frame" else None
        return cls(sample.key, words, sample.condition, seed, frame=frame, **told)


@dataclass(frozen=True)
class SamplerSettings:
    """``steps`` of the sampler, classifier-free ``guidance`` (1: none), ``control_scale`` of the residuals.

    Where there are several side networks, ``control_scale`` has a value for each. Guidance leads away from the
    ``negative_prompt``; None: from no text.
    """

    steps: int = 20
    guidance: float = 3.0
    control_scale: float | tuple[float, ...] = 1.0
    batch_size: int = 16
    negative_prompt: str | None = None


#: Solvers by name, and their classes of diffusers; ``own`` is the model's.
SOLVERS = {"dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler", "own": None}


def set_solver(pipeline: Any, solver: str | None = None) -> None:
    """DPM-Solver++ from the model's own noise schedule: good pictures in 20 steps. Or another of :data:`SOLVERS`.

    EDM models keep their own scheduler, and so do flows whose scheduler has no ``beta_schedule`` (Euler's). UniPC's and
    DPM's configurations have one, and tell flow and shift as well: there the solver solves the same flow.

    Raises:
        LisaError: a solver was asked for by name, and the model keeps its own.
    """
    import diffusers

    config, name = pipeline.scheduler.config, SOLVERS[choose("solver", solver or "dpm++", SOLVERS)]
    exchangeable = "beta_schedule" in config and config.get("timestep_type") != "continuous"
    if name is not None and exchangeable:
        pipeline.scheduler = getattr(diffusers, name).from_config(config)
    elif name is not None and solver is not None:
        raise LisaError(
            f"the solver {solver} cannot take the place of {type(pipeline.scheduler).__name__} (a flow or EDM)",
            "Leave it out: this model keeps its own",
        )
    pipeline.set_progress_bar_config(disable=True)


def sample_requests(
    pipeline: Any, requests: Sequence[Request], settings: SamplerSettings, call: PipelineCall
) -> Iterator[tuple[Request, np.ndarray]]:
    """:func:`sample_clips` or :func:`sample_pictures`, whichever the pipeline makes."""
    sample = sample_clips if call.clips else sample_pictures
    yield from sample(pipeline, requests, settings, call)


@torch.no_grad()
def sample_pictures(
    pipeline: Any, requests: Sequence[Request], settings: SamplerSettings, call: PipelineCall
) -> Iterator[tuple[Request, np.ndarray]]:
    """Pictures (uint8, H x W x 3) for ``requests``, batch by batch; all conditions of a batch have one size.

    Under autocast only the side network runs in it; see :func:`lisa.sample.precision.in_own_precision`.

    Raises:
        BrokenPictures: a picture is not finite.
    """
    together = 1 if call.one_at_a_time else settings.batch_size
    for first in range(0, len(requests), together):
        chosen = requests[first : first + together]
        height, width = chosen[0].condition.shape[:2]
        with _seeded(chosen[0].seed), _as_loaded(pipeline), in_own_precision(pipeline, call.network):
            images = pipeline(
                [request.prompt for request in chosen],
                height=height,
                width=width,
                num_inference_steps=settings.steps,
                generator=[torch.Generator().manual_seed(request.seed) for request in chosen],
                output_type="np",
                **_control(chosen, settings.control_scale, call),
                **{call.guidance: settings.guidance + call.guidance_offset},
                **_negative(settings, call, [request.prompt for request in chosen]),
                **call.more,
            ).images
        yield from zip(chosen, _to_bytes(np.asarray(images), chosen), strict=True)


@torch.no_grad()
def sample_clips(
    pipeline: Any, requests: Sequence[Request], settings: SamplerSettings, call: PipelineCall
) -> Iterator[tuple[Request, np.ndarray]]:
    """Clips (uint8, F x H x W x 3) for ``requests`` whose conditions are clips (uint8, F x H x W x 3), one by one:
    diffusers' pipelines take the condition of one clip at a time.

    Models that go on from a picture are given the request's ``frame`` instead of its prompt.

    Raises:
        BrokenPictures: a clip is not finite.
    """
    for request in requests:
        frames, height, width = request.condition.shape[:3]
        start, pace = _start(request)
        with _seeded(request.seed), _as_loaded(pipeline), in_own_precision(pipeline, call.network):
            clips = pipeline(
                start,
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=settings.steps,
                generator=torch.Generator().manual_seed(request.seed),
                output_type="np",
                **{call.image: _frames(request.condition), call.scale: settings.control_scale},
                **pace,
                **({call.chunk: frames_together(height, width)} if call.chunk else {}),
                **{call.guidance: settings.guidance + call.guidance_offset},
                **_negative(settings, call, request.prompt),
                **call.more,
            ).frames
        yield request, _to_bytes(np.asarray(clips), [request])[0]


def _negative(settings: SamplerSettings, call: PipelineCall, prompts: str | list[str]) -> dict[str, Any]:
    """The negative prompt, once per prompt; nothing where the pipeline's own will do."""
    text = call.negative if settings.negative_prompt is None else settings.negative_prompt
    if text is None:
        return {}
    return {"negative_prompt": text if isinstance(prompts, str) else [text] * len(prompts)}


def _start(request: Request) -> tuple[Any, dict[str, Any]]:
    """What a clip is made of, the prompt or the picture that it goes on from; and how it then goes on."""
    if request.frame is None:
        return request.prompt, {}
    return Image.fromarray(request.frame), {"fps": request.rate, "motion_bucket_id": request.motion}


def _frames(condition: np.ndarray) -> Any:
    """uint8 (F, H, W, 3) as pictures, (F, H, W, 3 n) as a tensor (F, 3 n, H, W) in 0..1."""
    return [*map(Image.fromarray, condition)] if condition.shape[-1] == 3 else _tensor([*condition])


def _to_bytes(images: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    broken = [each.key for each, image in zip(requests, images, strict=True) if not np.isfinite(image).all()]
    if broken:
        raise BrokenPictures(
            f"the pictures sampled for {', '.join(map(repr, broken))} are not finite",
            "Likely causes: fp16, which is too small for some networks (use bf16 or float32); damaged weights",
        )
    return (images * 255).round().astype(np.uint8)


def _control(chosen: Sequence[Request], scale: float | tuple[float, ...], call: PipelineCall) -> dict[str, Any]:
    """Condition pictures and scales: one side network's as such, those of several as lists."""
    by_side = list(zip(*[request.conditions for request in chosen], strict=True))
    several = len(by_side) > 1
    # Of the pipelines that take tensors, some take lists of pictures for several side networks only sample by sample.
    given = [
        _tensor(each) if call.takes_tensors and (several or each[0].shape[-1] > 3) else [*map(Image.fromarray, each)]
        for each in by_side
    ]
    scales = list(scale) if isinstance(scale, tuple) else scale
    return {call.image: given if several else given[0], call.scale: scales}


def _tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 (H, W, 3 n) each to (B, 3 n, H, W) in 0..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """For pipelines that draw from torch's global generator (SD3's encodes its condition so): from ``seed``, and the
    training's random state is as before.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def _as_loaded(pipeline: Any) -> Iterator[None]:
    """Weights that require gradients, as after ``from_pretrained``. Torch multiplies by frozen ones in another order,
    even without gradients, and pictures should be those of the stock pipeline to the last bit.
    """
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for module in modules for weight in module.parameters()]
    frozen = [weight for weight in weights if weight.is_floating_point() and not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
