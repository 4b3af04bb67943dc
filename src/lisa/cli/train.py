"""``lisa train``."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    config: Annotated[
        str | None, typer.Argument(help="YAML file; see docs/configuration.md. May be left out.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as train.steps=500.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT from its last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No alignment; without a preset: the baseline.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json at the end.")] = False,
) -> None:
    """Train a side network: lisa train config.yaml train.steps=500 out=runs/mine."""
    from lisa.cli.common import interrupted, is_main_process, print_json, quiet_libraries, split_arguments
    from lisa.cli.report import print_summary
    from lisa.train.config import TrainConfig
    from lisa.train.presets import refuse_idle
    from lisa.train.settings import load_settings

    file, settings = split_arguments(config, overrides)
    settings += [f"{name}={value}" for name, value, said in _flags(resume, overwrite, plain) if said]
    checked = load_settings(TrainConfig, file, settings)
    if not checked.align.enabled:
        refuse_idle(settings, checked.preset)
    quiet_libraries()
    from lisa.build.training import train as run

    summary = run(checked)
    if summary is None:
        interrupted(f"Continue with: lisa train {checked.out / 'config.yaml'} --resume")
    if not is_main_process():
        return
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, checked)


def _flags(resume: bool, overwrite: bool, plain: bool) -> list[tuple[str, str, bool]]:
    return [("resume", "latest", resume), ("overwrite", "true", overwrite), ("align.enabled", "false", plain)]
