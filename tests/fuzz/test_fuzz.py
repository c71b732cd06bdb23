"""The suite's part of the hostile trial, and every case that ever failed."""

import os

import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the cases' processes are forked

from .doors import DOORS, SUITE, shared_cases
from .kept import KEPT
from .trial import run_cases


def told(cases):
    """The cases with problems, in words; `python -m tests.fuzz --door D --seed S` runs one of them again."""
    return "\n".join(str(outcome) for outcome in run_cases(list(cases)) if outcome.problems)


@pytest.mark.parametrize("door", DOORS)
def test_a_hostile_case_ends_in_a_result_or_in_one_sentence(door):
    problems = told(shared_cases(door, SUITE))
    assert not problems, problems


def test_what_failed_once_fails_no_more():
    problems = told((door, seed) for door, seed, _ in KEPT)
    assert not problems, problems
