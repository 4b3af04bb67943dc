"""``lisa evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    generated: Annotated[Path, typer.Argument(help="Folder of generated pictures, named after the samples.")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder: judge against its held-out samples.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data to judge against, instead of --run's.")] = None,
    condition: Annotated[
        str | None, typer.Option("--condition", help="What the conditions are, with --data; which, with --run.")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", min=16, help="Pixels of the pictures, with --data.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Only the first so many samples.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the result, with every picture's, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Judge how well generated pictures follow their conditions. A missing picture is an error."""
    from lisa.build.evaluation import evaluate as judge
    from lisa.cli.common import print_json, show_interval
    from lisa.common.files import write_json

    result = judge(generated, run=run, data=data, condition=condition, size=size, count=count)
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['samples']} pictures, protocol {result['protocol']}")
    table.add_column("metric")
    table.add_column("value [95% interval]", justify="right")
    table.add_row(f"fidelity ({result['fidelity_rule']})", show_interval(result["fidelity"]))
    for name, metric in result["metrics"].items():
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        better = "higher" if metric["higher_is_better"] else "lower"
        table.add_row(f"{name}{unit}, {better} is better", show_interval(metric))
    Console(highlight=False).print(table)
