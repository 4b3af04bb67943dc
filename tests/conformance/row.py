"""One row of the conformance table, and what every row is built of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import lisa
from lisa.pairs import Inputs, Pair, PairSpec, Prediction, pair_spec
from lisa.sides.base import SideOptions

CAPTIONS = ["a cat", "dogs"]
#: Frames of the clips that video networks are given: more than one latent frame of every family.
FRAMES = 5


@dataclass(frozen=True)
class Row:
    """A pair, of one kind of prediction.

    Attributes:
        pair: its name.
        prediction: of its main network.
        folder: writes a tiny main network with random weights, in the layout of the public checkpoint, to a folder.
        embedder: side module -> the submodule that turns x_t (or the condition) into tokens or a map, whose order is
            that of the tapped features.
        tokens: (what the embedder gives, latent size) -> its tokens (B, N, C) or map, where it gives something else.
        planted_in: which input of the side network the planted pattern is put in.
        cell: of the latent, per token or cell of what the embedder gives; None: the default layer's stride.
        reach: cells around that it sees too, as convolutions do.
        sizes: of latents (height, width), the second not square; with one token at the deepest level, attention would
            have no gradient.
        side: options of a new side network.
        load: options for ``load_main``.
        in_another_form: arguments of the side network that it is given in another form than by the pipeline.
        free_depth: whether the number of a new side network's blocks can be chosen.
        label: tells apart rows of one pair and prediction.
        init: writes a side network to start from to a folder; None: a new one is made of the main network.
        shares: how many of the main network's blocks are computed once for prior and control; None: not told, but
            measured all the same.
    """

    pair: str
    prediction: str
    folder: Callable[[Path], Path]
    embedder: Callable[[Any], nn.Module]
    tokens: Callable[[Tensor, tuple[int, int]], Tensor] = lambda output, size: output
    planted_in: str = "x_t"
    cell: int | None = None
    reach: int = 0
    sizes: tuple[tuple[int, int], ...] = ((16, 16), (16, 24))
    side: SideOptions = field(default_factory=SideOptions)
    load: Mapping[str, Any] = field(default_factory=dict)
    in_another_form: tuple[str, ...] = ()
    free_depth: bool = True
    label: str = ""
    init: Callable[[Path], Path] | None = None
    shares: int | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, [self.pair, self.prediction, self.label]))


def spec_of(row: Row) -> PairSpec:
    """The registered kind of pair."""
    return pair_spec(row.pair)


_FOLDERS: dict[str, Path] = {}


def model_folder(row: Row, root: Path) -> Path:
    """The row's main network, written once per session."""
    if str(row) not in _FOLDERS:
        _FOLDERS[str(row)] = row.folder(root / str(row))
    return _FOLDERS[str(row)]


@cache
def _main(row_name: str, pair: str, folder: Path, options: tuple[tuple[str, Any], ...]) -> Any:
    return pair_spec(pair).load_main(str(folder), **dict(options))


def make_pair(row: Row, root: Path, *, share_prior: bool = True, randomise: bool = True) -> Pair:
    """The pair of a row with random zero modules: with zeros, tests of equality pass vacuously."""
    spec = pair_spec(row.pair)
    main = copy.deepcopy(_main(str(row), row.pair, model_folder(row, root), tuple(row.load.items())))
    torch.manual_seed(0)
    if row.init is None:
        side = spec.make_side(main, row.side)
    else:
        side = spec.load_side(str(row.init(root / f"{row}-side")))
        spec.check_fit(main, side)
    side.module.train()
    if randomise:
        randomise_zero_modules(side)
    return Pair(spec, main, side, share_prior=share_prior)


def randomise_zero_modules(side: Any, scale: float = 0.2, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in side.zero_modules():
            for parameter in module.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def make_inputs(pair: Pair, size: tuple[int, int], seed: int = 0) -> tuple[Inputs, Tensor]:
    """Random noisy latents, condition and target; context as the family encodes it. Clips for video networks."""
    generator = torch.Generator().manual_seed(seed)
    main = pair.main
    shape = (len(CAPTIONS), main.latent_channels, *over_time(main, main.latent_frames), *size)
    sides = [side * main.latent_factor for side in size]
    pixels = torch.rand(len(CAPTIONS), 3, *over_time(main), *sides, generator=generator)
    t = main.process.sample_timesteps(torch.rand(len(CAPTIONS), generator=generator).clamp(0.05, 0.95))
    x_t = torch.randn(shape, generator=generator)
    inputs = Inputs(x_t, t, encode_context(main, sides, generator), pair.read_condition(pixels))
    return inputs, torch.randn(shape, generator=generator)


def over_time(main: Any, count: Callable[[int], int] = lambda frames: frames) -> tuple[int, ...]:
    """What clips have in their shape before height and width, and pictures have not."""
    return (count(FRAMES),) if main.video else ()


def encode_context(main: Any, sides: list[int], generator: torch.Generator) -> Any:
    """Of captions, or of first frames."""
    if main.context_reads == "caption":
        return main.encode_text(CAPTIONS)
    frames = torch.rand(len(CAPTIONS), 3, *sides, generator=generator) * 2 - 1
    return main.encode_frame(frames, torch.tensor([7.0, 12.0]), torch.tensor([127.0, 60.0]), CAPTIONS)


def gradients(
    pair: Pair, size: tuple[int, int], context: AbstractContextManager[Any]
) -> tuple[Prediction, dict[str, Tensor | None]]:
    """One training step without its optimiser: the prediction, and the side network's gradients by name."""
    inputs, target = noised(pair, *make_inputs(pair, size))
    pair.side.module.zero_grad()
    with context:
        prediction = pair.predict(inputs)
        mse_loss(prediction.controlled.float(), target).backward()
    return prediction, {name: p.grad for name, p in pair.side.module.named_parameters()}


def noised(pair: Pair, clean: Inputs, noise: Tensor) -> tuple[Inputs, Tensor]:
    """A training's inputs and target, of what :func:`make_inputs` draws: its x_t taken as the picture's latent."""
    process, t = pair.main.process, clean.t
    return replace(clean, x_t=process.x_t(clean.x_t, noise, t)), process.target(clean.x_t, noise, t)


def attached(pair: Pair, layers: list[str]) -> Any:
    """The aligner as the trainer makes it."""
    strides = {layer.name: layer.stride for layer in pair.side.layers()}
    return lisa.attach(
        pair.side.module,
        layers,
        out_channels=pair.main.latent_channels,
        stride=[strides[name] for name in layers],
        tap=pair.side.tap,
        x_t_channels=0 if pair.side.sees_x_t else pair.main.latent_channels,
    )


def assert_same_step(
    ours: tuple[Prediction, dict[str, Tensor | None]], theirs: tuple[Prediction, dict[str, Tensor | None]]
) -> None:
    """Bit for bit, finite, and not for want of control."""
    (a, mine), (b, expected) = ours, theirs
    assert torch.equal(a.controlled, b.controlled) and torch.equal(a.prior, b.prior)
    assert mine.keys() == expected.keys()
    for name, gradient in mine.items():
        other = expected[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or (torch.equal(gradient, other) and bool(gradient.isfinite().all())), name
    assert any(gradient is not None and bool(gradient.any()) for gradient in mine.values())
    assert (a.controlled - a.prior).abs().max() > 1e-3


def to_own_memory(pipeline: Any) -> None:
    """Weights mapped from a file lie at other addresses, where vectorised sums are added up in another order."""
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.data = tensor.data.clone()
