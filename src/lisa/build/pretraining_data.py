"""The pictures of a pretraining: drawn or read once, encoded once, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisa.data.cache import ArrayCache, cache_key
from lisa.data.samples import Source, captions_of
from lisa.data.sources import check_source, open_source
from lisa.data.split import held_out_split
from lisa.data.transforms import PairedTransform
from lisa.mains.codec import KLCodec
from lisa.train.dataset import modules_hash
from lisa.train.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Pictures:
    """Every picture of the data, uint8 (N, S, S, 3) on disk, with captions; ``train`` and ``held_out`` are indices."""

    pixels: np.ndarray
    captions: list[str]
    train: list[int]
    held_out: list[int]
    cache: Path
    fingerprint: str

    def tensor(self, indices: list[int], flip: np.ndarray | None = None) -> Tensor:
        """Pictures in -1..1, (B, 3, S, S); mirrored where ``flip`` (B,) is true."""
        chosen = self.pixels[indices]
        if flip is not None:
            chosen = np.where(flip[:, None, None, None], chosen[:, :, ::-1], chosen)
        return torch.from_numpy(np.ascontiguousarray(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_pictures(config: PretrainConfig, source: Source) -> Pictures:
    """Read or draw every picture once, to a file on disk that both stages and resumed runs share."""
    cache = config.out / "cache"

    def draw(part: slice) -> np.ndarray:
        return np.stack([transform.sample(source[i], i).image for i in range(part.start, part.stop)])

    shape = (len(source), config.data.size, config.data.size, 3)
    transform = PairedTransform((config.data.size, config.data.size))
    fingerprint = source.part_fingerprint("image")
    store = ArrayCache(cache, cache_key(images=fingerprint, size=config.data.size))
    pixels = store.get_or_build("pixels", shape, np.uint8, draw)
    split = held_out_split(source.keys, config.data.held_out, config.seed)
    return Pictures(pixels, captions_of(source), list(split.train), list(split.held_out), cache, fingerprint)


def open_pictures(config: PretrainConfig) -> Source:
    """The source of pictures, checked.

    Raises:
        LisaError: see :func:`lisa.data.sources.check_source`.
    """
    scenes = {"seed": config.seed, "count": config.data.scenes, "size": config.data.size}
    source = open_source(config.data.folder or "scenes", require_condition=False, scene_options=scenes)
    if config.data.folder is not None:
        check_source(source, require_condition=False)
    return source


def encode_pictures(config: PretrainConfig, pictures: Pictures, vae: Any) -> Callable[[list[int], np.ndarray], Tensor]:
    """Scaled latents (posterior means) of any pictures and their mirror images, computed once and kept on disk."""
    codec = KLCodec(vae)
    side = config.data.size // codec.factor
    shape = (len(pictures.pixels), 2, codec.channels, side, side)

    @torch.no_grad()
    def encode(part: slice) -> np.ndarray:
        chosen = list(range(part.start, part.stop))
        flips = [np.full(len(chosen), flip) for flip in (False, True)]
        means = [codec.moments(vae, pictures.tensor(chosen, flip)).chunk(2, dim=1)[0] for flip in flips]
        return torch.stack(means, 1).half().numpy()

    key = cache_key(images=pictures.fingerprint, vae=modules_hash([vae]), size=config.data.size)
    stored = ArrayCache(pictures.cache, key).get_or_build("latents", shape, np.float16, encode)
    return lambda indices, flip: torch.from_numpy(stored[indices, flip.astype(np.int64)]).float()


def to_uint8(image: Tensor) -> np.ndarray:
    """A picture (3, H, W) in -1..1 as uint8 (H, W, 3)."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
