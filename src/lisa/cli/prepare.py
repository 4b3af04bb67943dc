"""``lisa prepare`` and ``lisa photos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    folder: Annotated[
        Path, typer.Argument(help="Folder of pictures or videos (captions as .txt beside them, if any).")
    ],
    condition: Annotated[str, typer.Option("--condition", help="canny, edges, lowres, gray or blur.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: FOLDER-CONDITION.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Crop to so many pixels: 512, or height,width such as 576,1024.")
    ] = None,
    crops: Annotated[int, typer.Option("--crops", min=1, help="Crops per picture.")] = 1,
    caption: Annotated[
        str | None, typer.Option("--caption", help="Caption of pictures without one; {name} is the file's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make everything again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make conditions for a folder of photographs or clips: a folder that lisa train takes."""
    from lisa.cli.common import parse_size, print_json
    from lisa.data.prepare import prepare as run

    wanted = parse_size(size)
    report = run(folder, condition, out, size=wanted, crops_per_image=crops, caption=caption, overwrite=overwrite)
    if as_json:
        print_json(report.to_json())
        return
    typer.echo(f"{report.made} made, {report.kept} kept: {report.samples} samples in {report.out}")
    if report.uncaptioned:
        typer.echo(f"{report.uncaptioned} of them have an empty caption; --caption TEXT gives them one")


def photos(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path("photos"),
) -> None:
    """Write the photographs that scikit-image carries, with captions: something real to try things on."""
    from lisa.data.photos import export_sample_photos

    written = export_sample_photos(out)
    typer.echo(f"{len(written)} photographs in {out}")
