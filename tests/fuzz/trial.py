"""Running cases: one in this process, and many in processes of their own that may crash, hang or fill the memory."""

import contextlib
import functools
import io
import logging
import multiprocessing
import os
import random
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO
from unittest import mock

from matplotlib.figure import Figure

from modeling_xacle import DEFAULT_MODEL, scoring
from modeling_xacle.cli.main import main
from modeling_xacle.evaluation import report
from modeling_xacle.scoring import load_scorer

from .cases import make_case
from .doors import DOORS, options
from .verdict import MOST_SECONDS, Ending, files_of, problems_of

MOST_BYTES = 2 * 2**30  # beyond what is in use when a process begins
PATIENCE = 2 * MOST_SECONDS  # of the process that waits for one that no alarm wakes
LIBRARIES = ("transformers", "datasets", "huggingface_hub", "accelerate", "matplotlib")


class TooLong(BaseException):
    """The alarm after `MOST_SECONDS`; no `except Exception` stops it."""


@dataclass
class Outcome:
    """How one case ended; without problems, as it should."""

    door: str
    seed: int
    trick: str = ""
    command: list[str] = field(default_factory=list)
    code: int | None = None
    seconds: float = 0.0
    stderr: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        command = shlex.join(["xacle", *(part[:200] for part in self.command)])
        lines = [f"--door {self.door} --seed {self.seed} ({self.trick}, {self.seconds:.1f} s, exit code {self.code})"]
        lines += [f"  $ {ascii(command)[1:600]}"]
        lines += [f"  | {ascii(line)[1:500]}" for line in self.stderr[-1500:].splitlines()[-4:]]
        return "\n".join([*lines, *(f"  ! {ascii(problem)[1:-1]}" for problem in self.problems)])


@functools.cache
def bundled_scorer(*arguments: object, **options: object) -> object:
    """The bundled model, loaded once for all cases of a process and of those forked from it."""
    return load_scorer(*arguments, **options)


def quick_load(model: str = DEFAULT_MODEL, *arguments: object, **options: object) -> object:
    """As `load_scorer`: other models than the bundled one are what a case is about."""
    return (bundled_scorer if model == DEFAULT_MODEL else load_scorer)(model, *arguments, **options)


def without_pixels(figure: Figure, kind: str = "png") -> bytes:
    """Texts are laid out, which is what hostile names break; pixels take a hundred times as long."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # as where pixels are drawn
        figure.draw_without_rendering()
    return f"no {kind}".encode()


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Cases cost milliseconds in here."""
    with (
        mock.patch.object(scoring, "load_scorer", quick_load),
        mock.patch.object(report, "figure_bytes", without_pixels),
    ):
        yield


@functools.cache
def prepare() -> None:
    """Run every command once as it should be, which imports what commands need before processes are forked."""
    for name in options.CALLS:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), quick():
            options.write_world(random.Random(0), Path(folder))
            ending = run_command(options.call(name))
        if ending.code != 0:
            raise RuntimeError(f"xacle {' '.join(options.call(name))} fails: {ending.raised or ending.stderr}")


def run_case(name: str, seed: int) -> Outcome:
    """Make a case, run it in a folder of its own, and judge it."""
    with tempfile.TemporaryDirectory(prefix="xacle-trial-") as root:
        folder = Path(root).resolve() / "case"
        folder.mkdir()
        trick, case = make_case(name, DOORS[name], seed, folder)
        before = files_of(folder)
        with contextlib.chdir(folder):
            ending = run_command(case.command, case.stdin)
        problems = list(problems_of(case, folder, before, ending))
        return Outcome(name, seed, trick, case.command, ending.code, ending.seconds, ending.stderr[-3000:], problems)


def run_command(arguments: Sequence[str], stdin: bytes = b"") -> Ending:
    """Run `xacle` with these arguments in this process."""
    code, raised, start = None, "", time.monotonic()
    with captured(stdin) as streams, warnings.catch_warnings(), _alarm():
        warnings.filterwarnings("always", category=RuntimeWarning)
        sys.argv = ["xacle", *arguments]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = 0 if end.code is None else end.code
        except (Exception, TooLong) as error:
            raised = describe(error)
    return Ending(code, raised, *(stream.decode("utf-8", "replace") for stream in streams), time.monotonic() - start)


def describe(error: BaseException) -> str:
    """An exception, and where in the package it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "modeling_xacle" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}, {ours[-1].name}, line {ours[-1].lineno}"
    return f"{type(error).__name__} in {place}: {str(error)[:200]}"


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def wake(*_: object) -> None:
        raise TooLong(f"{MOST_SECONDS} s")

    earlier = signal.signal(signal.SIGALRM, wake)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@contextlib.contextmanager
def captured(stdin: bytes) -> Iterator[list[bytes]]:
    """What a command writes, C libraries included; filled with stdout and stderr when the context ends."""
    streams: list[bytes] = []
    earlier, kept = (sys.stdin, sys.stdout, sys.stderr, sys.argv), [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True
        )
        try:
            with _logs_to(sys.stderr):
                yield streams
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdin, sys.stdout, sys.stderr, sys.argv = earlier
            for place, copy in enumerate(kept, 1):
                os.dup2(copy, place)
                os.close(copy)
            for file in (out, err):
                file.seek(0)
                streams.append(file.read())


@contextlib.contextmanager
def _logs_to(stream: TextIO) -> Iterator[None]:
    """Handlers keep the stream that there was when their library was imported; in here they have this one."""
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
    earlier = {handler: handler.setStream(stream) for handler in handlers if type(handler) is logging.StreamHandler}
    try:
        yield
    finally:
        for handler, kept in earlier.items():
            handler.setStream(kept or stream)


# ---------------------------------------------------------------------------------------------------------------------
# Many cases


def run_cases(cases: Sequence[tuple[str, int]]) -> Iterator[Outcome]:
    """The outcomes of cases, in their order. A case that kills its process, or that nothing wakes, costs a new one."""
    prepare()
    done = 0
    while done < len(cases):
        connection, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(cases[done:], sender))
        process.start()
        sender.close()
        for outcome in _received(connection):
            done += 1
            yield outcome
        process.kill()
        process.join()
        if done < len(cases):
            yield Outcome(*cases[done], problems=[f"the process hung or died, exit code {process.exitcode}"])
            done += 1


def _received(connection: Connection) -> Iterator[Outcome]:
    """What a process sends until it ends or says nothing for too long."""
    with connection, contextlib.suppress(EOFError):
        while connection.poll(PATIENCE):
            yield connection.recv()


def _work(cases: Sequence[tuple[str, int]], sender: Connection) -> None:
    limit = _data_bytes() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with quick():
        for name, seed in cases:
            sender.send(_outcome(name, seed))


def _outcome(name: str, seed: int) -> Outcome:
    """The case's; a fault of the trial's own is told and does not end it."""
    try:
        return run_case(name, seed)
    except Exception as error:
        return Outcome(name, seed, problems=[f"the trial itself failed: {describe(error)}"])


def _data_bytes() -> int:
    """Bytes of private memory that this process has asked for."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
