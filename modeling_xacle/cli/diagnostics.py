"""`xacle info` and `xacle doctor`."""

from typing import Annotated

import typer

from .. import DEFAULT_MODEL, scoring
from .options import AsJson, print_json


def info(
    model: Annotated[str, typer.Argument(show_default="the bundled one", help="Folder or Hub id.")] = DEFAULT_MODEL,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model: parts and their licences, training, metrics, and the signature of its scores."""
    found = scoring.model_info(model, revision)
    print_json(found) if as_json else typer.echo("\n".join(scoring.info_lines(found)))


def doctor(
    as_json: AsJson = False,
    write: Annotated[
        bool, typer.Option("--write", hidden=True, help="Write the scores that a new bundled model has to give.")
    ] = False,
) -> None:
    """Check this installation, in a block for a bug report; exit code 1 where it does not."""
    if write:
        typer.echo(scoring.write_expected())
        return
    report = scoring.diagnose()
    print_json(report) if as_json else typer.echo("\n".join(scoring.report_lines(report)))
    if not report["healthy"]:
        raise typer.Exit(1)
