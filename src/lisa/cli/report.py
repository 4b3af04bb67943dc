"""What a finished training prints: the meter, fidelity with and without the side network, and how to load it."""

from __future__ import annotations

from typing import Any

from lisa.cli.common import show_interval
from lisa.common.runfolder import RunFolder
from lisa.train.config import TrainConfig


def _how(summary: dict[str, Any]) -> str:
    """What was trained: ``plain``, ``lisa``, or by which preset."""
    preset, aligned = summary.get("preset"), summary["arm"] == "lisa"
    return summary["arm"] if preset is None else f"preset {preset}, {'aligned' if aligned else 'not aligned'}"


def print_summary(summary: dict[str, Any], config: TrainConfig) -> None:
    """A table of the figures and the lines that load the result."""
    from rich.console import Console
    from rich.table import Table

    from lisa.export.usage import loading_code
    from lisa.pairs import pair_spec

    console = Console(highlight=False)
    table = Table(
        title=f"{_how(summary)} on {' + '.join(config.data.conditions)}, {summary['steps']} steps, "
        f"{summary['seconds']:.0f} s"
    )
    table.add_column("held-out samples")
    table.add_column("value [95% interval]", justify="right")
    table.add_row("control gain", show_interval(summary["control_gain"]))
    table.add_row("condition gap", show_interval(summary["condition_gap"]))
    for condition, fidelity in summary["fidelities"].items():
        unit = f" {fidelity['unit']}" if fidelity["unit"] else ""
        what = "fidelity" if len(config.data.conditions) == 1 else f"fidelity to {condition}"
        table.add_row(f"{what} ({fidelity['metric']}{unit}) without", show_interval(fidelity["without"]))
        table.add_row(f"{what} ({fidelity['metric']}{unit}) with", show_interval(fidelity["with"]))
        table.add_row(what.replace("fidelity", "gain in fidelity"), show_interval(fidelity["gain"]))
        between_frames = sorted(fidelity["metrics"].keys() - {fidelity["metric"]}) if config.data.frames else []
        for name in between_frames:
            for side in ("without", "with"):
                table.add_row(f"{name} {side}", show_interval(fidelity["metrics"][name][side]))
    console.print(table)
    spec = pair_spec(config.model.pair)
    best = summary["best"]
    if best is not None:
        where = RunFolder(config.out).best
        console.print(f"\nbest reading: {best['fidelity']['value']:.3f} at step {best['step']} ({where})", markup=False)
    console.print(f"\nside network: {summary['side_network']}\nload it with:\n", markup=False)
    code = loading_code(
        spec.side_kind,
        spec.pipeline_name,
        summary["side_network"],
        config.model.path,
        argument=spec.call.network,
        package=spec.package,
        joins=spec.call.joins,
    )
    console.print(code, markup=False, soft_wrap=True)
