"""What a case may end in: a result of finite numbers, or one sentence that names the offender."""

import csv
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import modeling_xacle

from .cases import Case

ERROR = "error: "
MOST_SECONDS = 20
LONGEST_MESSAGE = 2000  # characters
NO_NUMBER = re.compile(r"(?<![\w.\-'\"])[-+]?(?:nan|inf)(?![\w.\-'\"])")
# What only a programmer understands.
CODE_WORDS = re.compile(
    r"NoneType|object has no|unsupported operand|not subscriptable|<class '|KeyError|codec can't|not iterable|"
    r"positional argument|keyword argument|invalid literal|out of bounds|RuntimeWarning|UserWarning|at 0x[0-9a-f]{8,}"
)
PACKAGE = Path(modeling_xacle.__file__).parent  # which may itself lie among temporary files
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SCORE_COLUMN = re.compile(r".*score")
Files = dict[str, str]


@dataclass
class Ending:
    """How a call of the command ended: its exit code, or what it raised, its streams, and the seconds it took."""

    code: int | None
    raised: str
    stdout: str
    stderr: str
    seconds: float


def files_of(folder: Path) -> Files:
    """Each file below the folder, with its kind and a digest of what is in it."""
    return {str(path.relative_to(folder)): _print_of(path) for path in sorted(folder.rglob("*")) if not _is_dir(path)}


def _is_dir(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _print_of(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(mode):
        return f"special {stat.S_IFMT(mode)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems_of(case: Case, folder: Path, before: Files, ending: Ending) -> Iterator[str]:
    """All that is wrong with the way a case ended."""
    if ending.raised:
        yield f"a traceback: {ending.raised}"
    if ending.seconds > MOST_SECONDS:
        yield f"took {ending.seconds:.0f} s"
    yield from _changes(case, before, files_of(folder), ending.code)
    if ending.raised:
        return
    if ending.code not in (0, 1, 2, 3):
        yield f"exit code {ending.code}"
    elif ending.code == 1:
        yield from _sentence_problems(case, folder, ending)
    elif ending.code in (0, 3):
        yield from _result_problems(case, folder, before, ending)


def _changes(case: Case, before: Files, after: Files, code: int | None) -> Iterator[str]:
    """Inputs that are not what they were, and files left behind."""
    for name, content in before.items():
        if after.get(name) != content and not name.startswith(case.writes):
            yield f"the input {name[-80:]!r} was changed or removed"
    for name in sorted(after.keys() - before.keys()):
        if not name.startswith(case.writes):
            yield f"left {name[-80:]!r} behind"
        elif code in (1, 2) and ".work" not in name:
            yield f"wrote {name[-80:]!r} and failed"


# ---------------------------------------------------------------------------------------------------------------------
# A sentence


def _sentence_problems(case: Case, folder: Path, ending: Ending) -> Iterator[str]:
    """Exit code 1: one line that begins with `error: ` and names the offender, in words of the user."""
    lines = ending.stderr.rstrip("\n").split("\n")
    if not lines[-1].startswith(ERROR) or sum(line.startswith(ERROR) for line in lines) != 1:
        yield f"not one line of error at the end, but {len(lines)} lines"
    message = ending.stderr[max(0, ending.stderr.find(ERROR)) :]
    if not any(shown and shown in message for shown in map(_as_shown, case.names)):
        yield f"the message names none of {', '.join(name[:40] for name in case.names)}"
    if len(message) > LONGEST_MESSAGE:
        yield f"the message has {len(message)} characters"
    if found := CODE_WORDS.search(ending.stderr):
        yield f"the message speaks of code: {found.group()}"
    if CONTROL.search(message.rstrip("\n").replace("\n", "")):
        yield "the message has control characters"
    yield from _strange_paths(folder, message)


def _as_shown(name: str) -> str:
    """The beginning of a name, up to what a message may show otherwise: line breaks, colours."""
    printable = name.encode("utf-8", "backslashreplace").decode()
    return CONTROL.split(printable)[0].strip()[:40]


def _strange_paths(folder: Path, message: str) -> Iterator[str]:
    """Temporary files in a message that the user did not name."""
    for path in re.findall(re.escape(tempfile.gettempdir()) + r"/[^\s'\":;,)]*", message):
        if not f"{path}/".startswith((f"{folder}/", f"{PACKAGE}/")):
            yield f"the message has a path that nobody gave: {path}"
    if ".partial" in message:
        yield "the message names an unfinished file"


# ---------------------------------------------------------------------------------------------------------------------
# A result


def _without_captions(case: Case, stdout: str) -> str:
    """What a command printed, without the captions that head the columns of a matrix: one may be "-inf"."""
    return stdout.split("\n", 1)[-1] if case.command[0] == "matrix" else stdout


def _result_problems(case: Case, folder: Path, before: Files, ending: Ending) -> Iterator[str]:
    """Exit codes 0 and 3: numbers that are numbers, on stdout and in every file."""
    if "--json" in case.command:
        yield from _json_problems("stdout", ending.stdout)
    elif found := NO_NUMBER.search(_without_captions(case, ending.stdout)):
        yield f"stdout has {found.group()}"
    if found := CODE_WORDS.search(ending.stderr):
        yield f"stderr speaks of code: {found.group()}"
    for name, content in files_of(folder).items():
        if content not in before.values():  # neither as it was, nor a copy
            yield from _file_problems(folder / name)
    if case.check is not None:
        yield from case.check(folder, ending.stdout)


def _json_problems(place: str, content: str) -> Iterator[str]:
    try:
        json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        yield f"{place} is not strict JSON: {str(error)[:100]}"


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _refuse(number)


def _file_problems(path: Path) -> Iterator[str]:
    """What is wrong with a file that was written, by its suffix."""
    if path.suffix == ".json":
        yield from _json_problems(path.name, path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":
        content = path.read_text(encoding="utf-8").rstrip("\n")
        if content and any(_json_problems(path.name, content)):  # not one JSON of many lines
            for line in content.split("\n"):
                yield from _json_problems(path.name, line)
    elif path.suffix in (".csv", ".tsv"):
        yield from _score_problems(path)


def _score_problems(path: Path) -> Iterator[str]:
    """Scores of a table that are there and are no finite numbers."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","):
                yield from (
                    f"{path.name}: the {name[-40:]} {cell[:40]}" for name, cell in row.items() if _is_bad(name, cell)
                )
    finally:
        csv.field_size_limit(limit)


def _is_bad(name: str | None, cell: str | None) -> bool:
    if not (isinstance(cell, str) and cell and SCORE_COLUMN.fullmatch(name or "")):
        return False
    try:
        return not math.isfinite(float(cell))
    except ValueError:
        return False  # a column of the user's
