"""How commands and scripts end: a mistake, Ctrl-C and a lost process in a sentence, without a traceback."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

LONGEST_LINE = 1000
LOST_PROCESS = re.compile(r"Connection (closed|reset) by peer")  # gloo's messages for it
LOST = "another process of this run has ended; the same command goes on where it stopped."
INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


def printable(message: str) -> str:
    """Returns a message, which may quote a broken file, in one line that a terminal can show."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(message.split()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def tell_stop() -> str:
    """Says what follows from Ctrl-C."""
    return "stopped: the same command goes on where it can"


@contextmanager
def plain_endings(
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError),
    stopped: Callable[[], str] = tell_stop,
    one_line: bool = False,
) -> Iterator[None]:
    """
    Run a command: mistakes end it with exit code 1 and Ctrl-C with 130, in words on stderr.

    Args:
        mistakes (`tuple` of exceptions): What means that the user can mend it; others keep their tracebacks.
        stopped (callable): Says what Ctrl-C left behind.
        one_line (`bool`): Keep no line breaks of a message.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:  # Typer's own exits, and that of --help
            raise
        typer.echo(stopped(), err=True)
        sys.exit(INTERRUPTED)
    except (RuntimeError, *mistakes) as error:
        lost = isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error))
        if not lost and not isinstance(error, mistakes):
            raise
        message = LOST if lost else "\n".join([str(error), *getattr(error, "__notes__", [])])
        lines = [message] if one_line else message.splitlines()
        told = "\n".join(line[: len(line) - len(line.lstrip())] + printable(line) for line in lines)
        typer.echo(f"error: {told}", err=True)
        sys.exit(1)
