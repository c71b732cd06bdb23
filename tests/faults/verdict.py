"""How a disturbed run may end, and what has to be there afterwards."""

import re
from collections.abc import Iterator

from .bench import Bench, Files
from .children import ROOT, Ending

SENTENCE = re.compile(r"^(error|stopped): \S", re.MULTILINE)
INTERRUPTED = 130  # as shells say it; no more need be said
TOLD = "left out, "  # a script goes on without a clip that is broken, and says so: another result, told
SOME_ROWS_FAILED = 3  # `xacle score`, whose table then says which


def problems_of_fault(ending: Ending) -> Iterator[str]:
    """What is wrong with the ending of a disturbed run: it may succeed, die of a signal, or say a sentence."""
    if ending.code is None:
        yield "the disturbed run hung"
    if "Traceback (most recent call last)" in ending.stderr:
        yield f"the disturbed run ends in a traceback: {end_of_traceback(ending.stderr)}"
    elif ending.code not in (None, 0, SOME_ROWS_FAILED, INTERRUPTED) and ending.code > 0:
        told = len(SENTENCE.findall(ending.stderr))
        if told != 1:
            yield f"the disturbed run ends with {ending.code} and {told} sentences: {ending.stderr[-300:]}"


def end_of_traceback(stderr: str) -> str:
    """What was raised, and in which lines of this repository and of others."""
    places = re.findall(r'File "(.+)", line (\d+), in (\w+)', stderr)
    ours = [place for place in places if "site-packages" not in place[0] and str(ROOT) in place[0]] or places
    return f"{stderr.strip().splitlines()[-1]} ({ours[-1:]}, {places[-1:]})"


def problems_of_state(bench: Bench, found: Files, ending: Ending) -> Iterator[str]:
    """Results that are neither whole nor as they were before the fault, and no word of it."""
    if ending.code == 0 and TOLD in ending.stderr:
        return
    for start in bench.task.whole:
        now, before, expected = (part(files, start) for files in (found, bench.before, bench.expected))
        if now not in ({}, before, expected):
            yield f"{start} is another, or half written: {differences(now, expected)}"
        elif not now and before and moved(found, start) != before:
            yield f"{start} is gone, which an earlier command had made"


def problems_of_end(bench: Bench, ending: Ending) -> Iterator[str]:
    """What is wrong after the same command was given again, undisturbed."""
    if ending.code != 0:
        yield f"given again, it ends with {ending.code}: {ending.stderr[-400:]}"
    elif difference := differences(bench.result(), bench.expected):
        yield f"given again, the result is another: {difference}; it said: {ending.stderr[-400:]}"


def part(files: Files, start: str) -> Files:
    """A file, or what is in a folder, but for files whose bytes vary."""
    names = (name for name in files if name == start or (start.endswith("/") and name.startswith(start)))
    return {name: files[name] for name in names if files[name] is not None}


def moved(files: Files, folder: str) -> Files:
    """What is in a folder that was moved aside to make place for another, by its earlier names."""
    aside = f".{folder[:-1]}.earlier/"
    return {folder + name.removeprefix(aside): content for name, content in part(files, aside).items()}


def differences(found: Files, expected: Files) -> str:
    """Names of files that are too many, missing or other; "" if there are none."""
    groups = {
        "more": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "other": sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name]),
    }
    return "; ".join(f"{kind}: {', '.join(names[:6])}" for kind, names in groups.items() if names)
