"""The table of contents of the `xacle` command. What needs PyTorch is loaded when a command runs, not before."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from .build import convert_beats, convert_tmu, init
from .combine import ensemble, submit
from .diagnostics import doctor, info
from .endings import plain_endings
from .evaluate import calibrate, compare, evaluate
from .fit_ensemble import fit_ensemble
from .rank import matrix, rank
from .score import score

SETTINGS = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(help="How well does a sound match a caption?", **SETTINGS)
convert = typer.Typer(help="Convert published checkpoints to folders that from_pretrained loads.", **SETTINGS)
COMMANDS = (score, evaluate, compare, calibrate, ensemble, fit_ensemble, submit, rank, matrix, init, info, doctor)


for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
for name, command in {"tmu": convert_tmu, "beats": convert_beats}.items():
    convert.command(name)(command)
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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars without a setting of their own, as Transformers' for loading
    if "transformers" in sys.modules:  # it has read the environment already
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    with plain_endings((ValueError, TypeError, OSError), one_line=True):
        app()
