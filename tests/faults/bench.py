"""Where a task is run: its inputs, its results, and what is known of it undisturbed."""

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from hub_server import HubServer

from .children import Ending, Running, Strike, import_all
from .conditions import launched, use_hub
from .disks import mount, unmount
from .tasks import Task

Files = dict[str, bytes | None]  # contents by name; of files whose bytes hold times, `None`


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of all files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Bench:
    """
    A task in a folder.

    Args:
        task (`Task`): What is run.
        folder (`Path`): Holds the inputs; results go to `out` in it.

    Attributes:
        seconds (`float`), changes (`int`), bytes_used (`int`), expected (`Files`): How long an undisturbed run takes,
            how often it changes files, what room its result takes, and the result.
        before (`Files`): The result before a run: what the task's earlier command left.
    """

    def __init__(self, task: Task, folder: Path):
        self.task, self.folder, self.out = task, folder, folder / "out"
        self.kept, self.cache = folder.with_name("kept"), folder.with_name("cache")
        self.inputs = self._inputs()
        self.hub = HubServer().__enter__() if task.uploads else None
        if self.hub is not None:
            self.hub.handle_error = lambda *_: None  # of a client that was killed while it spoke
        self._run_earlier()
        self._measure()

    def _run_earlier(self) -> None:
        """Run the command that comes first, if there is one, and keep what it left."""
        shutil.rmtree(self.kept, ignore_errors=True)
        self.renew()
        if self.task.earlier:
            self._undisturbed(self.task.earlier)
            shutil.copytree(self.out, self.kept)
        self.before = self.result()

    def _measure(self) -> None:
        """Run the task undisturbed: once to learn what it imports, and once as it will run from then on."""
        modules = self.folder.with_name("modules")
        self._undisturbed(self.task.command, modules)
        import_all(modules)
        self.renew()
        self.seconds, self.changes = self._undisturbed(self.task.command)[2:]
        self.expected = self.result()
        self.bytes_used = sum(path.stat().st_blocks * 512 for path in self.out.rglob("*"))

    def close(self) -> None:
        """Remove all results, and end the Hub."""
        self.clear()
        if self.hub is not None:
            self.hub.__exit__()

    def clear(self) -> None:
        """Remove all results, and the datasets that were read."""
        while os.path.ismount(self.out):
            unmount(self.out)
        for path in (self.out, self.cache):
            shutil.rmtree(path, ignore_errors=True)
        if self.hub is not None:
            self.hub.repositories.clear()
            self.hub.objects.clear()

    def renew(self, mounted: bool = False) -> None:
        """Make the results those that the earlier command left; on a disk of their own, if so wished."""
        self.clear()
        self.out.mkdir()
        if mounted:
            mount(self.out)
        if self.kept.exists():
            shutil.copytree(self.kept, self.out, dirs_exist_ok=True)

    def start(
        self,
        strike: Strike | None = None,
        conditions: tuple[Callable[[], None], ...] = (),
        command: list[str] | None = None,
        modules: Path | None = None,
    ) -> Running:
        """Start the task's command, or another."""
        conditions = (partial(setattr, datasets.config, "HF_DATASETS_CACHE", self.cache), *conditions)
        if self.hub is not None:
            conditions = (partial(use_hub, self.hub.address), *conditions)
        return Running(command or self.task.command, self.folder, strike, conditions, modules)

    def run(self, *arguments: Any, **settings: Any) -> Ending:
        """Start a command in as many processes as share the work, and wait until it ends."""
        if self.task.processes == 1:
            return self.start(*arguments, **settings).end()
        ranks = launched(self.task.processes)
        endings = [run.end() for run in [self.start(*arguments, conditions=(rank,), **settings) for rank in ranks]]
        return max(endings, key=lambda ending: ending.code != 0)

    def result(self) -> Files:
        """What there is in `out`, and on the Hub."""
        found: Files = dict(files_of(self.out))
        if self.hub is not None and ("models", "user/trained") in self.hub.repositories:
            found |= {f"hub/{name}": content for name, content in self.hub.files("user/trained").items()}
            found.pop("hub/.gitattributes", None)
        return {name: None if self._varies(name) else content for name, content in found.items()}

    def changed_inputs(self) -> list[str]:
        """Names of inputs that are no longer what they were."""
        now = self._inputs()
        return sorted(name for name in {*now, *self.inputs} if now.get(name) != self.inputs.get(name))

    def _inputs(self) -> dict[str, bytes]:
        return {name: content for name, content in files_of(self.folder).items() if not name.startswith("out/")}

    def _varies(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.task.varies)

    def _undisturbed(self, command: list[str], modules: Path | None = None) -> Ending:
        ending = self.run(command=command, modules=modules)
        if ending.code != 0:
            raise RuntimeError(f"undisturbed, {' '.join(command)} ends with {ending.code}: {ending.stderr[-2000:]}")
        return ending
