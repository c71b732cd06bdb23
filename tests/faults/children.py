"""Running a command in a process of its own, forked from one that has imported everything the command needs."""

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from modeling_xacle.cli.main import main

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 300  # after which a process has hung
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FORK = multiprocessing.get_context("fork")


class Strike(NamedTuple):
    """
    What happens to a run, and when.

    Fields:
        act (callable): Does it, to the process whose number it gets.
        seconds (`float`, *optional*): After so long.
        change (`int`, *optional*): Or just before so many files and folders had been made, renamed or removed.
    """

    act: Callable[[int], None]
    seconds: float | None = None
    change: int | None = None


class Ending(NamedTuple):
    """How a run ended: exit code (`None` if it hung), words, length, and how often it had changed files."""

    code: int | None
    stderr: str
    seconds: float
    changes: int


class Running:
    """
    A command that runs in a folder, in a process of its own.

    Args:
        command (`list[str]`): `xacle` or a script, and its arguments.
        folder (`Path`): Where it is given.
        strike (`Strike`, *optional*): A fault. One that comes by the clock does so while [`end`] waits.
        conditions (iterable of callables): Called in the process first.
        modules (`Path`, *optional*): File to note the modules in that the process has imported at its end.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        strike: Strike | None = None,
        conditions: Iterable[Callable[[], None]] = (),
        modules: Path | None = None,
    ):
        self.strike, self.begun, self.changes = strike, FORK.Event(), FORK.Value("i", 0)
        self.reader, writer = os.pipe()  # a file would be as limited as those of the command
        life = (command, folder, writer, strike, list(conditions), self.begun, self.changes, modules)
        self.process = FORK.Process(target=_work, args=life)
        self.process.start()
        os.close(writer)

    def end(self) -> Ending:
        """Wait until it ends."""
        with ThreadPoolExecutor(1) as thread, open(self.reader, errors="replace") as stream:
            stderr = thread.submit(stream.read)
            self.begun.wait(MOST_SECONDS)
            start = time.monotonic()
            if self.strike is not None and self.strike.seconds is not None:
                self.process.join(self.strike.seconds)
                if self.process.is_alive():
                    self.strike.act(self.process.pid)
            code = wait(self.process)
            return Ending(code, stderr.result(), time.monotonic() - start, self.changes.value)


def wait(process: BaseProcess, seconds: float = MOST_SECONDS) -> int | None:
    """The exit code of a process; `None` if it had to be killed because it did not end."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def call(command: list[str]) -> None:
    """Run `xacle`, or a script of this repository, as its users do."""
    program, *arguments = command
    sys.argv = [program, *arguments]
    if program == "xacle":
        main()
        return
    script = ROOT / program
    sys.path[:0] = [str(script.parent), str(ROOT)]
    runpy.run_path(str(script), run_name="__main__")


def import_all(modules: Path) -> None:
    """Import what a run had imported, so that those forked from now on need not."""
    for name in modules.read_text().split():
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _work(
    command: list[str],
    folder: Path,
    stderr: int,
    strike: Strike | None,
    conditions: list[Callable[[], None]],
    begun: Event,
    changes: Synchronized,
    modules: Path | None,
) -> None:
    """The life of the process."""
    os.chdir(folder)
    _speak_to(stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.dont_write_bytecode = True
    for condition in conditions:
        condition()
    sys.addaudithook(_counter(changes, strike))
    begun.set()
    try:
        call(command)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is over
        if modules is not None:
            modules.write_text("\n".join(sys.modules))


def _counter(changes: Synchronized, strike: Strike | None) -> Callable[[str, tuple], None]:
    """An audit hook that counts changes of files in this process, and strikes at one of them."""

    def hook(event: str, details: tuple) -> None:
        if not _is_change(event, details):
            return
        changes.value += 1
        if strike is not None and strike.change == changes.value:
            strike.act(os.getpid())

    return hook


def _is_change(event: str, details: tuple) -> bool:
    """Returns True for what makes, renames or removes a file or folder."""
    if event != "open":
        return event in CHANGES
    path, _, flags = details
    return isinstance(path, (str, bytes)) and bool(flags & WRITING) and not str(path).startswith("/dev/")


def _speak_to(stderr: int) -> None:
    """Send what the process says on stderr, C libraries included, to a pipe, and what it prints to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(stderr, 2)
    os.close(stderr)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    for name in list(logging.root.manager.loggerDict):  # handlers keep the stream that there was at import
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
