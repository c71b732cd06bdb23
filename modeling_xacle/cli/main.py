"""The table of contents of the `xacle` command. What PyTorch is needed for loads when a command runs, not before."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from .. import __version__
from .build import convert_beats, convert_tmu, init
from .combine import ensemble, submit
from .diagnostics import doctor, info
from .evaluate import calibrate, compare, evaluate
from .rank import matrix, rank
from .score import score

SETTINGS = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(help="How well does a sound match a caption?", **SETTINGS)
convert = typer.Typer(help="Convert published checkpoints to folders that from_pretrained loads.", **SETTINGS)
COMMANDS = (score, evaluate, compare, calibrate, ensemble, submit, rank, matrix, init, info, doctor)


def registered(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with Transformers told of this package before it runs."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from transformers.utils import logging

        from .. import registration  # noqa: F401

        logging.disable_progress_bar()
        command(*args, **kwargs)

    return run


for command in COMMANDS:
    app.command(command.__name__)(registered(command))
for name, command in {"tmu": convert_tmu, "beats": convert_beats}.items():
    convert.command(name)(registered(command))
app.add_typer(convert, name="convert")


def tell_version(asked: bool) -> None:
    """Print the version, if that is what was asked for."""
    if asked:
        typer.echo(f"modeling-xacle {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """How well does a sound match a caption?"""


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, without a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
