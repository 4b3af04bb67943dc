"""What the networks are called with, and what comes out: by the stock pipeline in one step, and by our pair."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from conformance.own_space import process_time
from conformance.row import over_time
from lisa.core.packing import unpack
from lisa.pairs import Inputs, Pair
from lisa.sample.pictures import Request, SamplerSettings, sample_clips, sample_pictures, set_solver

PROMPT = "a cat"
#: Arguments that say nothing about what is computed, or say what leaving them out says.
_MANNERS = {
    *("return_dict", "attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs", "timestep_cond"),
    *("conditioning_scale", "guess_mode", "control_guidance_start", "control_guidance_end"),
}


def compare_with_pipeline(pair: Pair, size: tuple[int, int], in_another_form: Sequence[str] = ()) -> Tensor:
    """The second step of the stock pipeline, without classifier-free guidance, against ours on the same noisy latent.

    Both networks must be called with the same arguments, and what the pipeline hands to its scheduler must be our
    prediction. Arguments of the side network ``in_another_form`` are not compared.

    Returns:
        The prediction.
    """
    pair.side.module.eval()
    pipeline, main, call = pair.pipeline(), pair.main, pair.call
    _narrow_posterior(main.component("vae"))
    set_solver(pipeline)
    pixels = [*over_time(main), *[side * main.latent_factor for side in size]]
    sample_with = sample_clips if main.video else sample_pictures
    condition = torch.randint(0, 256, (*pixels, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    frame = condition[0].numpy() if main.context_reads == "frame" else None
    request = Request("0", PROMPT, condition.numpy(), seed=1, frame=frame)
    networks = [getattr(pipeline, call.network), main.network]
    after = int(main.process.prediction == "edm")  # steps: at its last one there is next to no noise, nor scaling
    with recorded(networks) as theirs, _scheduler_steps(pipeline) as steps:
        # An embedded guidance is no classifier-free one: it is the same in training and in sampling here.
        settings = SamplerSettings(steps=2 + after, guidance=getattr(main, "guidance", 1.0))
        list(sample_with(pipeline, [request], settings, call))
    output, t, sample = steps[1]
    read = pair.read_condition(condition.movedim(-1, 0)[None] / 255)
    t = process_time(main, torch.as_tensor(t).reshape(1))
    inputs = Inputs(_as_map(sample, main, size), t, _context(main, request), read)
    with torch.no_grad(), recorded([pair.side.module, main.network]) as ours:
        prediction = pair.control(inputs)
    # What is both networks in one is called as neither of them is.
    for mine, their, left_out in [] if call.joins else zip(ours, theirs, (in_another_form, ()), strict=True):
        assert mine[-1].keys() == their[-1 - after].keys()
        for name in mine[-1].keys() - left_out:
            _same(mine[-1][name], their[-1 - after][name], name)
    torch.testing.assert_close(prediction, _as_map(output, main, size), atol=5e-4, rtol=1e-3)
    return prediction


@contextmanager
def recorded(modules: list[Any]) -> Iterator[list[list[dict[str, Any]]]]:
    """Arguments by name, defaults included, of every call of each module."""
    seen: list[list[dict[str, Any]]] = [[] for _ in modules]

    def recorder(calls: list[dict[str, Any]]) -> Any:
        def record(module: Any, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            found = {name: _or_none(value) for name, value in bound.arguments.items() if name not in _MANNERS}
            calls.append(torch.utils._pytree.tree_map_only(Tensor, torch.clone, found))

        return record

    hooks = [
        module.register_forward_pre_hook(recorder(calls), with_kwargs=True)
        for module, calls in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _scheduler_steps(pipeline: Any) -> Iterator[list[tuple[Tensor, Any, Tensor]]]:
    """(what was predicted, time, noisy latent) of every step."""
    steps: list[tuple[Tensor, Any, Tensor]] = []
    own = pipeline.scheduler.step

    def step(output: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        steps.append((output.clone(), t, sample.clone()))
        return own(output, t, sample, *args, **kwargs)

    pipeline.scheduler.step = step
    try:
        yield steps
    finally:
        del pipeline.scheduler.step


def _narrow_posterior(vae: Any) -> None:
    """As a trained autoencoder's is: some pipelines draw the condition's latent, we take its mean."""
    last = getattr(vae, "quant_conv", None) or getattr(vae.encoder, "conv_out", None)
    if last is not None and type(vae).__name__ != "AutoencoderDC":
        deviations = slice(last.weight.shape[0] // 2, None)
        with torch.no_grad():
            last.weight[deviations], last.bias[deviations] = 0.0, -30.0


def _or_none(value: Any) -> Any:
    """None for a dictionary that holds nothing else."""
    return None if isinstance(value, dict) and all(each is None for each in value.values()) else value


def _context(main: Any, request: Request) -> Any:
    """Of the prompt; or of the frame, with the noise on it that the pipeline draws."""
    if main.context_reads == "caption":
        return main.encode_text([request.prompt])
    frame = torch.from_numpy(request.frame).movedim(-1, 0)[None] / 127.5 - 1
    noise = torch.randn(frame.shape, generator=torch.Generator().manual_seed(request.seed))
    with mock.patch("lisa.mains.svd._noise", lambda frames, keys: noise):
        return main.encode_frame(frame, torch.tensor([request.rate]), torch.tensor([request.motion]), [request.key])


def _as_map(latent: Tensor, main: Any, size: tuple[int, int]) -> Tensor:
    """Some pipelines keep latents as packed tokens, or those of pictures with a frame, or frames before channels."""
    if latent.ndim == 5 and latent.shape[1] != main.latent_channels:
        return latent.transpose(1, 2)
    if latent.ndim == 5 and latent.shape[2] > 1:
        return latent
    return unpack(latent, size) if latent.ndim == 3 else latent.reshape(*latent.shape[:2], *size)


def _same(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
        a, b = (each if isinstance(each, Tensor) else torch.stack(list(each)) for each in (ours, theirs))
        assert a.shape == b.shape or a.numel() == b.numel() == 1, name
        # close, not equal: some pipelines count time in whole numbers or scale in another order
        torch.testing.assert_close(
            a.float().flatten(), b.float().flatten(), atol=2e-3, rtol=1e-3, msg=lambda text: f"{name}: {text}"
        )
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            _same(ours[key], theirs[key], f"{name}[{key}]")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            _same(a, b, name)
    else:
        assert ours == theirs, name
