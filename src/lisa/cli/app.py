"""The verbs and their order in ``lisa --help``."""

from __future__ import annotations

import typer

from lisa.cli import analyse, compare, evaluate, export, generate, models, prepare, pretrain, quickstart, train

app = typer.Typer(
    name="lisa",
    help="Train ControlNets and other visual-condition side networks with Likelihood Score Alignment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from lisa import __version__

        typer.echo(f"lisa {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("models")(models.models)
app.command("generate")(generate.generate)
app.command("evaluate")(evaluate.evaluate)
app.command("analyse")(analyse.analyse)
app.command("export")(export.export)
app.command("prepare")(prepare.prepare)
app.command("photos")(prepare.photos)
app.command("pretrain")(pretrain.pretrain)
