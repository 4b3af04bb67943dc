"""``lisa compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def compare(
    config: Annotated[
        str | None, typer.Argument(help="YAML file, as for lisa train. With --report: a folder.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of all arms, such as train.steps=500. With --report: folders.", show_default=False
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arms",
            help="plain, lisa, lisa-normalised, lisa-min-snr, shuffled, multi-layer, early-stop, or "
            "'NAME:lisa;align.weight=1'; several between commas, or repeat it. Default: plain,lisa. "
            "With --report the names of their folders are enough.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="5: 0 to 4; or 3-4; or 0,2,7. Default: 5.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs and the report. Default: runs/compare.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Train only these here: plain:0,lisa:1-2,shuffled.")
    ] = None,
    baseline: Annotated[str, typer.Option("--baseline", help="Arm that the others are compared with.")] = "plain",
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing: the report of the runs in one or more folders.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json at the end.")] = False,
) -> None:
    """Does alignment learn sooner? Train arms with the same seeds, and report steps to quality, with intervals.

    lisa compare config.yaml --arms plain,lisa,shuffled --seeds 5 --out runs/compare. The same command goes on where it
    was stopped.
    """
    from lisa.cli.common import print_json, quiet_libraries, say
    from lisa.compare.report import write_report

    quiet_libraries()
    from lisa.build.arms import arm_names, parse_arms
    from lisa.build.comparing import parse_seeds
    from lisa.common.errors import LisaError

    if report and only is not None:
        raise LisaError("--only says what is trained, and --report trains nothing", "Use --arms and --seeds")
    names: list[str] | None = None
    numbers = parse_seeds(seeds) if seeds is not None else None
    finished = True
    if report:
        folders = [*([] if config is None else [config]), *(overrides or [])] or [str(out or "runs/compare")]
        target = out or Path(folders[0])
        there = sorted({run.parent.name for folder in folders for run in Path(folder).glob("*/seed-*")})
        names = arm_names(arms, there) if arms else None
    else:
        target = out or Path("runs/compare")
        folders = [str(target)]
        wanted, numbers = parse_arms(arms or ["plain,lisa"]), numbers or parse_seeds("5")
        names = [arm.name for arm in wanted]
        finished = _train(config, overrides, wanted, numbers, target, only, baseline, say)
    if finished or any(target.glob("*/seed-*/config.yaml")):
        summary = write_report(folders, target, baseline=baseline, arms=names, seeds=numbers)
        print_json(summary) if as_json else _print(summary, target)
    if not finished:
        say("stopped; what was trained is kept. The same command goes on from there")
        raise typer.Exit(130)


def _train(
    config: str | None,
    overrides: Sequence[str] | None,
    arms: Sequence[Any],
    seeds: Sequence[int],
    out: Path,
    only: str | None,
    baseline: str,
    say: Any,
) -> bool:
    from lisa.build.comparing import make_plan, parse_only, train_runs
    from lisa.cli.common import split_arguments
    from lisa.common.errors import choose

    choose("baseline", baseline, [arm.name for arm in arms])
    file, settings = split_arguments(config, overrides)
    plan = make_plan(file, settings, arms, seeds, out)
    return train_runs(plan, None if only is None else parse_only(only, plan), say=say)


def _print(summary: Mapping[str, Any], out: Path) -> None:
    from textwrap import fill

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from lisa.compare import wording as w

    console, share = Console(highlight=False), str(summary["levels"][0])
    table = Table(
        title=f"{w.heading(summary)}; speed-up to {summary['levels'][0]:.0%}", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("arm", overflow="fold")
    for name in ("sooner, in steps", "in time", "onset", "gain", "fidelity"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["arms"]:
        speeds = [w.speed_of(row, axis, share, summary["baseline"]) for axis in ("steps", "seconds")]
        figures = [w.onset(row["onset"]), w.interval(row["final_gain"]), w.interval(row["fidelity"])]
        intervals = ["\n".join(fill(part, 16) for part in cell if part) for cell in speeds]
        table.add_row(row["arm"], *intervals, *(value for value, _ in figures))
    console.print(table)
    for row in summary["arms"]:
        if row["arm"] != summary["baseline"]:
            console.print(f"{row['arm']}: {w.verdict(row, summary)}", markup=False)
    for note in summary["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"\nthe report: {out / 'report.html'}", markup=False)
