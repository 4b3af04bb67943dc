"""``lisa export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[
        Path, typer.Argument(help="Run folder, side network folder, or single file that lisa export wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File (.safetensors) or, for diffusers, folder to write.")],
    layout: Annotated[
        str, typer.Option("--format", help="diffusers (folder), diffusers-single (one file) or original (one file).")
    ] = "diffusers-single",
    dtype: Annotated[str, typer.Option("--dtype", help="Type of the weights: fp32, fp16 or bf16.")] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a side network in the form that other programs take."""
    from lisa.cli.common import print_json, quiet_libraries

    quiet_libraries()
    from lisa.build.export import ExportOptions
    from lisa.build.export import export as write

    result = write(ExportOptions(source, out, layout, dtype, overwrite))
    if as_json:
        print_json(result)
    else:
        size = result["bytes"] / 2**20
        typer.echo(f"{result['kind']}, {result['parameters']} parameters as {dtype}, {size:.1f} MiB: {out}")
