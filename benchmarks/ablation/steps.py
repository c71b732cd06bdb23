"""
The steps of a benchmark in its work folder. Each is done once; a result from another command, other inputs or another
version of the package does not count as done. Code changes within a version go unnoticed.
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
# Options that change how a machine computes, but not what, with the number of their values.
MACHINE_OPTIONS = {"--num-workers": 1, "--bf16": 0}


@dataclass(frozen=True)
class Step:
    """
    A step.

    Args:
        result (`str`): Folder, or file in a folder, below the work folder, that exists when the step is done.
        settings (`list` of `str`): What the result depends on; folders of earlier steps among them are its inputs.
        make (callable): Does the step.
    """

    result: str
    settings: list[str]
    make: Callable[[], None]

    @property
    def folder(self) -> str:
        """The folder of the result."""
        return str(Path(self.result).parent) if Path(self.result).suffix else self.result


def settings_of(command: list[str]) -> list[str]:
    """Returns what a command's result depends on: script and arguments, without interpreter and machine options."""
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
    """Records how each step's folder is made: settings, digests of its inputs' records, and the package's version."""
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
    """Returns the path of the record of a step's folder."""
    return work / RECORDS / f"{folder.replace('/', '.')}.json"


def describe_difference(file: Path, record: dict[str, Any]) -> str:
    """Says how the record in a file differs from the one to be made now; empty if it does not."""
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
    Do the steps that are not done yet, in order.

    Args:
        work (`Path`): Folder of all results; its folder `steps` records how each was made, and how long it took (for
            an interrupted step, the last part).
        steps (iterable of `Step`): All steps.

    Raises:
        ValueError: Some results were made differently; nothing was done.
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
            write_json(files[step.folder], records[step.folder])  # so that every result there was made as recorded
            start = time.perf_counter()
            step.make()
            write_json(files[step.folder], {**records[step.folder], "seconds": time.perf_counter() - start})
