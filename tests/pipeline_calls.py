"""What a stock pipeline computes in one step, against what training computes from the same noisy latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lisa.pairs import Inputs, Pair

CAPTIONS = ["a cat", "dogs"]


def sharpen(vae: Any) -> None:
    """Give every posterior next to no deviation: pipelines draw from it, training takes its mean."""
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.encoder.conv_out.weight[channels:].zero_()
        vae.encoder.conv_out.bias[channels:].fill_(-60.0)


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[dict[str, Any], list[Tensor]]]]:
    """Keyword arguments and output tensors of every call of a module."""
    calls: list[tuple[dict[str, Any], list[Tensor]]] = []

    def keep(_module: nn.Module, _args: Any, given: dict[str, Any], output: Any) -> None:
        calls.append((given, list(_tensors(output))))

    hook = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def both_ways(pair: Pair, to_map: Any = lambda hidden, size: hidden, **call: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of side and main network in the second step of the stock pipeline, and of ``pair`` on the same x_t.

    Args:
        pair: its autoencoder is sharpened.
        to_map: (hidden states that the transformer was given, latent size) -> x_t as a map.
        call: arguments of the pipeline.
    """
    main = pair.main
    sharpen(main.pipeline.vae)
    pair.side.module.eval()
    size = (16, 24)
    pixels = torch.randint(0, 256, (2, size[0] * 8, size[1] * 8, 3), generator=torch.Generator().manual_seed(5)).byte()
    pipeline = pair.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        pair.spec.call.image: [Image.fromarray(picture.numpy()) for picture in pixels],
        "height": size[0] * 8,
        "width": size[1] * 8,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    with watched(pipeline.controlnet) as side, watched(pipeline.transformer) as transformer:
        pipeline(CAPTIONS, **arguments, **call)
    (given, velocity), residuals = transformer[-1], side[-1][1]
    x_t = to_map(given["hidden_states"], size)
    condition = pair.read_condition(pixels.permute(0, 3, 1, 2).float() / 255)
    t = pipeline.scheduler.sigmas[1].expand(len(CAPTIONS))
    inputs = Inputs(x_t, t, main.encode_text(CAPTIONS), condition)
    with torch.no_grad(), watched(pair.side.module) as our_side, watched(main.network) as our_transformer:
        pair.control(inputs)
    return [*residuals, *velocity], [*our_side[-1][1], *our_transformer[-1][1]]
