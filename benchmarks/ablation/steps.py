"""
The steps of a benchmark in its work folder: each is done once, and what was made otherwise, by another command, from
other inputs or by another version of the package, is not taken for done. Changes of code within a version are not seen.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_xacle import __version__
from modeling_xacle.checkpoints.fingerprints import digest_of
from modeling_xacle.data.files import write_json

RECORDS = "steps"
# Options that say how a machine computes, not what, and the number of their values.
MACHINE_OPTIONS = {"--num-workers": 1, "--bf16": 0}


@dataclass(frozen=True)
class Step:
    """
    A step.

    Args:
        result (`str`): Folder, or file in its folder, below the work folder, that is there when the step is done.
        settings (`list` of `str`): What the result depends on; folders of earlier steps among them are its inputs.
        make (callable): Does it.
    """

    result: str
    settings: list[str]
    make: Callable[[], None]

    @property
    def folder(self) -> str:
        """That of the result."""
        return str(Path(self.result).parent) if Path(self.result).suffix else self.result


def settings_of(command: list[str]) -> list[str]:
    """What the result of a command depends on: script and arguments, without interpreter and options of the machine."""
    _, script, *arguments = command
    settings, skipped = [Path(script).name], 0
    for argument in arguments:
        if skipped:
            skipped -= 1
        elif argument in MACHINE_OPTIONS:
            skipped = MACHINE_OPTIONS[argument]
        else:
            settings.append(argument)
    return settings


def make_records(steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
    """How each step's folder is made: settings, the digests of the records of its inputs, and the package's version."""
    records: dict[str, dict[str, Any]] = {}
    for step in steps:
        inputs = {
            folder: digest_of(record)
            for folder, record in records.items()
            if any(f"{setting}/".startswith(f"{folder}/") for setting in step.settings) and folder != step.folder
        }
        records[step.folder] = {"settings": step.settings, "inputs": inputs, "version": __version__}
    return records


def record_file(work: Path, folder: str) -> Path:
    """Where the record of a step's folder is."""
    return work / RECORDS / f"{folder.replace('/', '.')}.json"


def describe_difference(file: Path, record: dict[str, Any]) -> str:
    """How what is recorded in a file differs from what would be recorded now; empty if it does not."""
    if not file.is_file():
        return "nothing tells how"
    earlier = json.loads(file.read_text(encoding="utf-8"))
    then, now = earlier["settings"], record["settings"]
    reasons = []
    if then != now:
        gone, come = ([value for value in a if value not in b] for a, b in ((then, now), (now, then)))
        reasons.append(f"with {' '.join(gone) or 'fewer settings'}, now {' '.join(come) or 'fewer'}")
    reasons += [
        f"from another {name}" for name in record["inputs"] if earlier["inputs"].get(name) != record["inputs"][name]
    ]
    if earlier["version"] != __version__:
        reasons.append(f"by version {earlier['version']}, now {__version__}")
    return ", ".join(reasons)


def do_steps(work: Path, steps: Iterable[Step]) -> None:
    """
    Do what is not done yet, in order.

    Args:
        work (`Path`): Folder of all results; how each was made, and how long it took (of an interrupted step, the last
            part), is recorded in its folder `steps`.
        steps (iterable of `Step`): All of them.

    Raises:
        ValueError: Results are there that were made otherwise; nothing was done.
    """
    steps = list(steps)
    records = make_records(steps)
    files = {step.folder: record_file(work, step.folder) for step in steps}
    done = [step for step in steps if (work / step.result).exists()]
    reasons = {step.folder: describe_difference(files[step.folder], records[step.folder]) for step in done}
    otherwise = [f"{work / folder} ({reason})" for folder, reason in reasons.items() if reason]
    if otherwise:
        raise ValueError(
            "These were made otherwise than they would be now; delete them, so that they are made again, or name "
            "another work folder:\n  " + "\n  ".join(otherwise)
        )
    for step in steps:
        if step not in done:
            write_json(files[step.folder], records[step.folder])  # a result that is there was made as recorded
            start = time.perf_counter()
            step.make()
            write_json(files[step.folder], {**records[step.folder], "seconds": time.perf_counter() - start})
