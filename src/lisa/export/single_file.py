"""One ``.safetensors`` file with metadata, for programs that take no folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lisa.common.errors import LisaError
from lisa.common.files import atomic_write

#: What weights can be stored in, as the option is called.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_HASH = "modelspec.hash_sha256"


def cast_weights(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Floating-point weights in ``dtype`` (a name of :data:`DTYPES`), others as they are.

    Raises:
        LisaError: a finite weight would become infinite.
    """
    kind = DTYPES[dtype]
    cast = {}
    for name, value in weights.items():
        new = value.detach().to(kind if value.is_floating_point() else value.dtype).contiguous()
        if bool((new.isinf() & value.isfinite()).any()):
            largest = value.abs().max().item()
            raise LisaError(
                f"{name!r} has weights up to {largest:.3g}, which {dtype} cannot hold", "Export as bf16 or fp32"
            )
        cast[name] = new
    return cast


def write_single_file(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write the file, whole or not at all; returns the SHA-256 of its tensors, which also joins the metadata.

    The hash is of everything behind the header, as the ModelSpec standard has it. It is known only once the tensors lie
    in their order on the disk, so that it is filled in afterwards, in a place of its length.

    Args:
        path: ends with ``.safetensors``.
        weights: by name.
        metadata: without the hash.

    Raises:
        LisaError: the disk is full or not writable.
    """
    from safetensors.torch import save_file

    blank = "0x" + "-" * hashlib.sha256().digest_size * 2
    with atomic_write(path) as temporary:
        save_file(dict(weights), temporary, {"format": "pt", **metadata, _HASH: blank})
        with temporary.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest = "0x" + hashlib.file_digest(file, "sha256").hexdigest()
        with temporary.open("r+b") as file:
            file.seek(8 + header.index(blank.encode()))
            file.write(digest.encode())
    return digest
