"""`python -m tests.faults --times 20 --seed 1`: the whole trial; with `--task` and `--fault`, a part."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny; and processes are forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite's helpers


def main() -> int:
    """Run the trial, tell of each problem, and end with a line for each task and fault; exit code 1 if any failed."""
    from .faults import FAULTS
    from .tasks import TASKS
    from .trial import world

    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="Seeds of each task and fault.")
    parser.add_argument("--seed", type=int, default=1, help="The first; the others follow it.")
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS), help="Default: all.")
    parser.add_argument("--fault", choices=FAULTS, nargs="+", default=list(FAULTS), help="Default: all.")
    options = parser.parse_args()
    with world() as folder:
        outcomes = {task: disturb(folder, task, options) for task in options.task}
    say(f"\n{'task':17} {'fault':17} times differences exit codes")
    for task in options.task:
        for fault in options.fault:
            say(summary(task, fault, [outcome for outcome in outcomes[task] if outcome.fault == fault]))
    return int(any(outcome.problems for found in outcomes.values() for outcome in found))


def disturb(folder: Path, task: str, options: argparse.Namespace) -> list:
    """The outcomes of a task's cases; each problem is told at once."""
    from .trial import run_cases

    outcomes, start = [], time.monotonic()
    seeds = range(options.seed, options.seed + options.times)
    for outcome in run_cases(folder, task, [(fault, seed) for fault in options.fault for seed in seeds]):
        outcomes.append(outcome)
        if outcome.problems:
            say(str(outcome))
    say(f"{task}: {len(outcomes)} cases in {time.monotonic() - start:.0f} s")
    return outcomes


def summary(task: str, fault: str, outcomes: list) -> str:
    """How often a fault befell a task, how often that made a difference, and how the disturbed runs ended."""
    ran = [outcome for outcome in outcomes if not outcome.skipped]
    ends = ", ".join(f"{count} x {code}" for code, count in Counter(outcome.code for outcome in ran).items())
    failed = sum(bool(outcome.problems) for outcome in ran)
    return f"{task:17} {fault:17} {len(ran):5} {failed:11} {ends or outcomes[0].skipped}"


def say(line: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_HOME"] = cache  # the user's own stays as it is
        sys.exit(main())
