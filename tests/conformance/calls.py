"""What the networks are called with: by the stock pipeline in one step, and by our pair on the same noise."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from lisa.core.packing import unpack
from lisa.pairs import Inputs, Pair
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures

PROMPT = "a cat"
#: arguments that say nothing about what is computed
_MANNERS = {"return_dict", "attention_kwargs", "joint_attention_kwargs"}


def recorded(modules: list[Any], run: Any) -> list[dict[str, Any]]:
    """Arguments by name, defaults included, of the first call of each module while ``run`` runs."""
    seen: dict[int, dict[str, Any]] = {}

    def record(module: Any, args: Any, kwargs: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        found = {name: value for name, value in bound.arguments.items() if name not in _MANNERS}
        seen.setdefault(id(module), torch.utils._pytree.tree_map_only(Tensor, torch.clone, found))

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[id(module)] for module in modules]


def assert_called_as_by_the_pipeline(pair: Pair, size: tuple[int, int]) -> None:
    """Both networks, without classifier-free guidance."""
    pair.side.module.eval()
    _narrow_posterior(pair.main.component("vae"))
    pipeline, main = pair.pipeline(), pair.main
    pipeline.set_progress_bar_config(disable=True)
    pixels = [side * main.latent_factor for side in size]
    condition = torch.randint(0, 256, (*pixels, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    request = Request("0", PROMPT, condition.numpy(), seed=1)
    settings = SamplerSettings(steps=2, guidance=1.0)
    side, network = getattr(pipeline, pair.spec.call.network), main.network
    theirs = recorded([side, network], lambda: list(sample_pictures(pipeline, [request], settings, pair.spec.call)))
    t = pipeline.scheduler.timesteps[:1]
    if main.process.prediction == "flow":
        t = t / 1000.0
    read = pair.read_condition(condition.permute(2, 0, 1)[None] / 255)
    inputs = Inputs(_noisy_latent(theirs[1], size), t, main.encode_text([PROMPT]), read)
    with torch.no_grad():
        ours = recorded([pair.side.module, network], lambda: pair.control(inputs))
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.keys() == their.keys()
        for name in mine:
            _same(mine[name], their[name], name)


def _narrow_posterior(vae: Any) -> None:
    """As a trained autoencoder's is: some pipelines draw the condition's latent, we take its mean."""
    last = getattr(vae, "quant_conv", None)
    if last is not None:
        deviations = slice(last.weight.shape[0] // 2, None)
        with torch.no_grad():
            last.weight[deviations], last.bias[deviations] = 0.0, -30.0


def _noisy_latent(call: dict[str, Any], size: tuple[int, int]) -> Tensor:
    """The first argument as a map: some networks take a list of frames, some packed tokens."""
    first = next(iter(call.values()))
    if isinstance(first, list):
        return torch.stack(first).squeeze(2)
    return unpack(first, size) if first.ndim == 3 else first


def _same(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
        a, b = (each if isinstance(each, Tensor) else torch.stack(list(each)) for each in (ours, theirs))
        assert a.shape == b.shape, name
        # close, not equal: some pipelines count time in whole numbers or scale in another order
        torch.testing.assert_close(a.float(), b.float(), atol=2e-3, rtol=1e-3, msg=lambda text: f"{name}: {text}")
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
