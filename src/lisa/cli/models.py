"""``lisa models``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="One kind of pair, with all its layers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the pairs of main and side networks that can be trained."""
    from lisa.cli.common import print_json, quiet_libraries

    quiet_libraries()
    from lisa.build.models import describe_pair, describe_pairs

    if name is not None:
        pair = describe_pair(name)
        print_json(pair) if as_json else _print_pair(pair)
    else:
        pairs = describe_pairs()
        print_json(pairs) if as_json else _print_pairs(pairs)


def _print_pairs(pairs: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lisa.build.models import unsupported

    console = Console(highlight=False)
    table = Table(title="pairs (model.pair=NAME)", title_justify="left")
    for column in ("name", "predicts", "layers", "computed once for prior and control"):
        table.add_column(column, overflow="fold")
    for pair in pairs:
        names = [layer["name"] for layer in pair["layers"]]
        table.add_row(pair["name"], ", ".join(pair["prediction"]), shorten(names), pair["shared"] or "nothing")
    console.print(table)
    common = [fact for fact in pairs[0]["verified_by"] if all(fact in pair["verified_by"] for pair in pairs)]
    console.print(f"all verified by {'; '.join(common)}; not yet with public weights", markup=False)
    console.print("lisa models NAME: the layers' shapes, and what else that pair is verified by")
    console.print("\nnot supported:")
    for side, why in unsupported().items():
        console.print(f"  {side}: {why}", markup=False)


def _print_pair(pair: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for label, key in (
        ("main network", "main"),
        ("side network", "side"),
        ("pipeline", "pipeline"),
        ("makes", "makes"),
    ):
        console.print(f"{label:13} {pair[key]}", markup=False)
    console.print(f"{'predicts':13} {', '.join(pair['prediction'])}")
    console.print(f"{'shared':13} {pair['shared'] or 'nothing'}", markup=False)
    console.print(f"{'verified by':13} {'; '.join(pair['verified_by'])}", markup=False)
    table = Table(title=f"layers that can be aligned (shapes: {pair['example']})", title_justify="left")
    for column in ("align.layer", "channels", "stride in the latent"):
        table.add_column(column)
    for layer in pair["layers"]:
        mark = "  (default)" if layer["name"] == pair["default_layer"] else ""
        table.add_row(f"{layer['name']}{mark}", str(layer["channels"]), str(layer["stride"]))
    console.print(table)


def shorten(names: Sequence[str]) -> str:
    """``down.0, down.1, down.2, mid`` as ``down.0-2, mid``; the numbers of a kind have no gaps."""
    parts = []
    for kind, group in groupby(names, key=lambda name: name.partition(".")[0]):
        numbers = [name.partition(".")[2] for name in group]
        parts.append(kind if not numbers[0] else f"{kind}.{numbers[0]}" + (f"-{numbers[-1]}" if numbers[1:] else ""))
    return ", ".join(parts)
