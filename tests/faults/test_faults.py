"""The short form of the trial by faults."""

import os

import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the tasks' processes are forked

from .trial import run_cases, world

CASES = {  # faults that strike at the same place every time, not by the clock
    "ensemble": [("kill at a change", 1), ("SIGINT", 1)],
    "preparing": [("kill at a change", 1), ("full disk", 1), ("limited files", 1)],
    "scoring": [("kill at a change", 1), ("shrinking file", 1)],
    "labelling": [("kill at a change", 1)],
    "stage 3": [("kill at a change", 1)],
    "upload": [("kill at a change", 1)],
}


@pytest.fixture(scope="module")
def inputs():
    with world() as folder:
        yield folder


@pytest.mark.parametrize("task", CASES)
def test_a_disturbed_run_given_again_ends_as_the_undisturbed_one(task, inputs):
    """`python -m tests.faults --task T --fault F --seed S` runs one of them again."""
    outcomes = list(run_cases(inputs, task, CASES[task]))
    problems = "\n".join(str(outcome) for outcome in outcomes if outcome.problems)
    assert not problems, problems
    if skipped := [outcome.fault for outcome in outcomes if outcome.skipped]:
        pytest.skip(f"the others pass; not possible here: {', '.join(skipped)}")
