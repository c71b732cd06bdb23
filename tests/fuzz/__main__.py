"""`python -m tests.fuzz --cases 50000 --seed 1`: the whole trial; `--door tables --seed 7`: one case of it again."""

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny; and processes are forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main() -> int:
    """Run the trial, tell of each problem, and end with a line for each door; exit code 1 if there are problems."""
    from .doors import DOORS
    from .trial import run_cases

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, help="Default: 2,000; with --door, 1.")
    parser.add_argument("--seed", type=int, default=0, help="The first; the others follow it.")
    parser.add_argument("--door", choices=DOORS, help="Default: all.")
    options = parser.parse_args()
    codes, problems = defaultdict(Counter), Counter()
    for outcome in run_cases(chosen_cases(options)):
        codes[outcome.door][outcome.code] += 1
        problems[outcome.door] += bool(outcome.problems)
        if outcome.problems or (options.door and not options.cases):
            say(str(outcome))
    for door, counts in codes.items():
        ends = ", ".join(f"{count} x {code}" for code, count in sorted(counts.items(), key=str))
        say(f"{door}: {counts.total()} cases, exit codes {ends}, {problems[door]} with problems")
    return int(problems.total() > 0)


def chosen_cases(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Doors and seeds: of all doors by their shares, or of one."""
    from .doors import DOORS, SUITE, shared_cases

    if options.door is not None:
        return [(options.door, options.seed + number) for number in range(options.cases or 1)]
    return [case for door in DOORS for case in shared_cases(door, options.cases or SUITE, options.seed)]


def say(line: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_HOME"] = cache  # the user's own stays as it is
        sys.exit(main())
