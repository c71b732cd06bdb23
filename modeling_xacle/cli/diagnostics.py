"""`xacle info` and `xacle doctor`."""

import json
from typing import Annotated

import typer

from .. import DEFAULT_MODEL, scoring

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def info(
    model: Annotated[str, typer.Argument(show_default="the bundled one", help="Folder or Hub id.")] = DEFAULT_MODEL,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model: parts and their licences, training, metrics, and the signature of its scores."""
    found = scoring.model_info(model, revision)
    lines = [json.dumps(found, indent=2, ensure_ascii=False)] if as_json else scoring.info_lines(found)
    typer.echo("\n".join(lines))


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
    lines = [json.dumps(report, indent=2, ensure_ascii=False)] if as_json else scoring.report_lines(report)
    typer.echo("\n".join(lines))
    if not report["healthy"]:
        raise typer.Exit(1)
