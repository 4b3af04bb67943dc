"""How much memory the activations of one step of Stable Video Diffusion take: computed, not measured on a GPU.

    python benchmarks/activations.py --frames 14 25

Both networks run, with the public model's configuration, on tensors that have shapes and no contents (FakeTensorMode),
while every storage is counted from its making to its end. A peak is that of side network, controlled pass and backward
pass of one clip in bfloat16, with the gradients and without weights and optimiser. What libraries take for themselves
comes on top, and so does float32 where autocast keeps it.
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lisa.build.recomputing import recompute_activations
from lisa.common.files import write_json
from lisa.core.injecting import injected
from lisa.networks import SVDControlNet

HERE = Path(__file__).parent
WAYS: dict[str, Callable[[Any], None]] = {
    "kept": lambda network: None,
    "recomputed by diffusers": lambda network: network.enable_gradient_checkpointing(),
    "side.gradient_checkpointing=true": recompute_activations,
}


class Living(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still there, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count what is new."""
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def peak(frames: int, size: tuple[int, int], prepare: Callable[[Any], None]) -> int:
    """Bytes at the worst moment of a step on one clip."""
    height, width = size
    with FakeTensorMode():
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            unet = diffusers.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
            unet.eval().requires_grad_(False)
            side = SVDControlNet().train()
            for network in (unet, side):
                prepare(network)
            x_t, t = torch.zeros(1, frames, 8, height // 8, width // 8), torch.zeros(1)
            context, times = torch.zeros(1, 1, 1024), torch.zeros(1, 3)
            condition = torch.zeros(1, frames, 3, height, width)
            living = Living()
            with living:
                down, mid = side(x_t, t, context, times, condition, return_dict=False)
                with injected(unet, down, mid):
                    prediction = unet(x_t, t, context, times, return_dict=False)[0]
                prediction.float().square().mean().backward()
        finally:
            torch.set_default_dtype(default)
    return living.peak


def main() -> None:
    """All ways and lengths, as one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[14, 25])
    parser.add_argument("--size", type=int, nargs=2, default=[576, 1024], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = []
    for frames in options.frames:
        for way, prepare in WAYS.items():
            began = time.monotonic()
            found = peak(frames, tuple(options.size), prepare) / 2**30
            rows.append({"frames": frames, "size": options.size, "activations": way, "peak_gib": round(found, 1)})
            print(f"{frames} frames, {way}: {found:.1f} GiB ({time.monotonic() - began:.0f} s)", flush=True)
    write_json(
        options.results / f"{date.today().isoformat()}-activations-svd.json",
        {
            "what": (__doc__ or "").split("\n\n")[-1].strip().replace("\n", " "),
            "date": date.today().isoformat(),
            "rows": rows,
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        },
    )


if __name__ == "__main__":
    main()
