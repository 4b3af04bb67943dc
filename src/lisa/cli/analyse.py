"""``lisa analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def analyse(
    run: Annotated[Path, typer.Argument(help="Finished run folder.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Another run on the same data and main network.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Held-out samples; default: all, at most 64.")
    ] = None,
    levels: Annotated[int, typer.Option("--levels", help="Noise levels, spread evenly.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of noise, probes and intervals.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; default: RUN/analysis.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier analysis.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Tell what the side features encode, layer by layer, and how disentangled they are."""
    from lisa.cli.common import quiet_libraries, say

    quiet_libraries()
    from lisa.build.analysing import analyse as run_analysis
    from lisa.build.analysis.setup import RESULT

    result = run_analysis(
        run,
        against=against,
        samples=samples,
        levels=levels,
        seed=seed,
        out=out,
        overwrite=overwrite,
        progress=say,
    )
    if as_json:
        typer.echo((Path(result["out"]) / RESULT).read_text(encoding="utf-8"), nl=False)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    held_against = result["against"] is not None
    table = Table(title=_title(held_against), title_justify="left")
    table.add_column("layer")
    for name in ("disentanglement", "difference", "CKA") if held_against else ("disentanglement",):
        table.add_column(name, justify="right")
    for name in () if held_against else ("condition", "noise", "caption", "score"):
        table.add_column(name, justify="right")
    aligned = {layer for layers in result["aligned"].values() for layer in layers}
    for row in [*result["by_layer"], {"layer": "all", **result["overall"]}]:
        mark = "*" if row["layer"] in aligned else ""
        table.add_row(f"{row['layer']}{mark}", *_cells(row, held_against))
    console.print(table)
    console.print(result["verdict"], markup=False)
    for role, found in result["decoded"].items():
        if "left_out" in found:
            console.print(f"no decoded score of {result[role]}: {found['left_out']}", markup=False)
    console.print(f"report: {Path(result['out']) / 'report.md'}", markup=False, soft_wrap=True)


def _title(held_against: bool) -> str:
    rest = "run / against, and run minus against" if held_against else "held-out R2 of linear probes"
    return f"means over the noise levels [95% interval]; {rest}; *: aligned"


def _cells(row: dict[str, Any], held_against: bool) -> list[str]:
    run = row["run"]
    if not held_against:
        figures = [run["r2"][target] for target in ("condition", "noise", "caption", "score")]
        return [_show(run["disentanglement"]), *[_show(figure, ends=False) for figure in figures]]
    both = f"{_show(run['disentanglement'], ends=False)} / {_show(row['against']['disentanglement'], ends=False)}"
    similarity = "" if row.get("cka") is None else f"{row['cka']:.3f}"
    return [both, _show(row["difference"]["disentanglement"]), similarity]


def _show(interval: dict[str, float | None], *, ends: bool = True) -> str:
    from lisa.cli.common import show_interval

    return show_interval(interval if ends else {**interval, "low": None, "high": None})
