"""Runs cases: a task is disturbed by a fault, then given again, and what is there is judged."""

import contextlib
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .bench import Bench
from .children import FORK, wait
from .faults import FAULTS
from .materials import write_world
from .tasks import TASKS
from .verdict import problems_of_end, problems_of_fault, problems_of_state


class Outcome(NamedTuple):
    """A case, the exit code of its disturbed run, and what was wrong; the reason, where the fault cannot befall it."""

    task: str
    fault: str
    seed: int
    code: int | None = None
    problems: tuple[str, ...] = ()
    skipped: str = ""

    def __str__(self) -> str:
        lines = [f"--task '{self.task}' --fault '{self.fault}' --seed {self.seed} (exit code {self.code})"]
        return "\n".join([*lines, *(f"  ! {problem}" for problem in self.problems)])


@contextlib.contextmanager
def world() -> Iterator[Path]:
    """A folder with the inputs of all tasks, made in another process, since threads do not survive a fork."""
    with tempfile.TemporaryDirectory(prefix="xacle-faults-") as root:
        folder = Path(root).resolve() / "world"
        process = FORK.Process(target=write_world, args=(folder,))
        process.start()
        if wait(process) != 0:
            raise RuntimeError("the inputs of the trial could not be written")
        yield folder


def run_cases(folder: Path, task: str, cases: Iterable[tuple[str, int]]) -> Iterator[Outcome]:
    """The outcomes of a task's cases, each a fault and a seed."""
    with contextlib.closing(Bench(TASKS[task], folder)) as bench:
        for fault, seed in cases:
            if FAULTS[fault].fits(bench):
                yield run_case(bench, task, fault, seed)
            else:
                yield Outcome(task, fault, seed, skipped="does not apply, or is not possible here")


def run_case(bench: Bench, task: str, fault: str, seed: int) -> Outcome:
    """Disturb a run, judge, give the command again, judge."""
    bench.renew()
    ending = FAULTS[fault].strikes(bench, random.Random(f"{task} {fault} {seed}"))
    problems = [*problems_of_fault(ending), *problems_of_state(bench, bench.result(), ending)]
    problems += problems_of_end(bench, bench.run())
    problems += [f"the input {name} has changed" for name in bench.changed_inputs()]
    return Outcome(task, fault, seed, ending.code, tuple(problems))
