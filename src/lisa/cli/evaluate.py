"""``lisa evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    generated: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of generated pictures, named after the samples. Several, each with a picture of every sample: "
            "figures are means over them."
        ),
    ],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder: judge against its held-out samples.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data to judge against, instead of --run's; scenes: those there are files of."),
    ] = None,
    condition: Annotated[
        str | None, typer.Option("--condition", help="What the conditions are, with --data; which, with --run.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Pixels of the pictures, with --data: 512, or height,width.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Only the first so many samples.")] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="own, or a published one: lisa, controlnet++ (docs/evaluation.md).")
    ] = "own",
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="Weights that a published protocol reads pictures with.")
    ] = None,
    detector: Annotated[str | None, typer.Option("--detector", help="Weights of poses' person detector.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Folder of the data's own label maps (PNG).")] = None,
    labels_start: Annotated[
        int | None, typer.Option("--labels-start", min=0, max=254, help="Number of their first class; ADE20K's is 1.")
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", help="More of them, such as psnr,lpips,clip_score (docs/evaluation.md).")
    ] = "",
    clip: Annotated[str | None, typer.Option("--clip", help="Weights of CLIP; else ViT-B/16's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the result, with every sample's, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Judge how well generated pictures follow their conditions. A missing picture is an error.

    Exits with code 2 where something that was asked for could not be run; the rest is printed nevertheless.
    """
    from lisa.build.evaluation import Judging
    from lisa.build.evaluation import evaluate as judge
    from lisa.cli.common import parse_size, print_json, quiet_libraries, say
    from lisa.common.files import write_json

    if protocol != "own" or metrics:
        quiet_libraries()
    judging = Judging(
        protocol=protocol,
        extractor=extractor,
        detector=detector,
        labels=labels,
        labels_start=labels_start,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        **({} if clip is None else {"clip": clip}),
    )
    pixels = parse_size(size)
    result = judge(generated, run=run, data=data, condition=condition, size=pixels, count=count, judging=judging)
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        _print_table(result)
    for note in result["notes"]:
        say(f"note: {note}")
    if result["not_run"]:
        for name, reason in result["not_run"].items():
            say(f"error: {name} could not be run: {reason}")
        raise typer.Exit(2)


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lisa.cli.common import show_interval

    each = f", {result['sets']} of each" if result["sets"] > 1 else ""
    table = Table(title=f"{result['samples']} samples{each}, protocol {result['protocol']}")
    table.add_column("metric")
    table.add_column("value [95% interval]", justify="right")
    table.add_row(f"fidelity ({result['fidelity_rule']})", show_interval(result["fidelity"]))
    for name, metric in result["metrics"].items():
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        better = "higher" if metric["higher_is_better"] else "lower"
        table.add_row(f"{name}{unit}, {better} is better", show_interval(metric))
    console = Console(highlight=False)
    console.print(table)
    for used in result.get("extractors", []):
        console.print(f"read by {used['source']} at {used['revision']}", markup=False, soft_wrap=True)
    for deviation in result.get("deviations", []):
        console.print(f"not as published: {deviation}", markup=False, soft_wrap=True)
