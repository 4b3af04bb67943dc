"""``lisa pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    config: Annotated[
        str | None, typer.Argument(help="YAML file; see docs/configuration.md. May be left out.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as denoiser.steps=500.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of captioned images; else scenes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
) -> None:
    """Make a small Stable Diffusion from nothing, for scenes or for a folder of captioned images; on the CPU."""
    from lisa.cli.common import interrupted, quiet_libraries, split_arguments
    from lisa.train.pretrain.config import PretrainConfig
    from lisa.train.settings import load_settings

    file, settings = split_arguments(config, overrides)
    flags = (("resume", resume), ("overwrite", overwrite))
    settings += [f"{name}=true" for name, said in flags if said]
    settings += [f"data.folder={data}"] if data is not None else []
    checked = load_settings(PretrainConfig, file, settings)
    quiet_libraries()
    from lisa.build.pretraining import pretrain as run

    model = run(checked)
    if model is None:
        interrupted("Continue with --resume")
    typer.echo(f"model: {model}\nload it with: DiffusionPipeline.from_pretrained({str(model)!r})")
