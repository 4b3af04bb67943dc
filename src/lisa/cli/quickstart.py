"""``lisa quickstart``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lisa.train.config import TrainConfig


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/quickstart"),
    condition: Annotated[
        str, typer.Option("--condition", help="edges, segmentation, depth, skeleton or lowres.")
    ] = "edges",
    model: Annotated[str, typer.Option("--model", help="Embedded model: tiny-sd, tiny-sd3 or tiny-svd.")] = "tiny-sd",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="The baseline: neither the preset nor alignment.")] = False,
    aligned: Annotated[bool, typer.Option("--aligned", help="Preset and likelihood score alignment.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json at the end, and nothing else.")] = False,
) -> None:
    """See it work: train a side network on an embedded model and procedural scenes, in minutes, on a CPU."""
    from lisa.cli.common import interrupted, print_json, quiet_libraries
    from lisa.cli.report import print_summary
    from lisa.train.quickstart import quickstart_config

    config = quickstart_config(
        out=out,
        condition=condition,
        model=model,
        steps=steps,
        seed=seed,
        plain=plain,
        aligned=aligned,
        overwrite=overwrite,
    )
    quiet_libraries()
    from lisa.build.training import train

    if not as_json:
        typer.echo(_introduction(config))
    summary = train(config, quiet=as_json)
    if summary is None:
        interrupted(f"Continue with: lisa train {out / 'config.yaml'} --resume")
    if as_json:
        print_json(summary)
        return
    print_summary(summary, config)
    if summary["picture"] is not None:  # None: what it samples is not finite, which the notes say
        moving = Path(summary["picture"]).with_suffix(".webp")
        typer.echo(f"\nlook at: {summary['picture']}" + (f"\nmoving:  {moving}" if moving.is_file() else ""))


_MODELS = {
    "tiny-sd": "A tiny Stable Diffusion, pretrained on scenes",
    "tiny-sd3": "A tiny Stable Diffusion 3 (a flow transformer), pretrained on scenes",
    "tiny-svd": "A tiny Stable Video Diffusion, pretrained on moving scenes",
}


def _introduction(config: TrainConfig) -> str:
    how = f"with the preset '{config.preset}'" if config.preset else "as the baseline: without preset and alignment"
    if config.align.active:
        how += " and likelihood score alignment"
    lines = (
        f"{_MODELS[config.model.path]} of coloured shapes, gets a ControlNet for '{config.data.condition}'. "
        f"It is trained for {config.train.steps} steps {how}.",
        "gain (control gain): share of the prior's error that the side network removes (0: it does nothing).",
        "gap (condition gap, held out): how much of that is owed to the right condition rather than to any condition.",
    )
    return "\n".join(map(textwrap.fill, lines)) + "\n"
