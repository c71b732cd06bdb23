"""Submissions to the challenge: checks tables of scores and packs them into a ZIP with a description of each system."""

import csv
import io
import math
import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.columns import AUDIO_COLUMNS, PREDICTION_COLUMNS, SCORE_RANGE, XACLE_COLUMNS, find_column
from ..data.files import read_text, write_whole
from ..data.tables import read_table

NUM_TEST_CLIPS = 3000
SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# The fields of a system's description, and whether each is a list. All must be there; only `MAY_BE_EMPTY` may be empty.
DESCRIPTION_FIELDS = {"name": False, "authors": True, "contact": False, "external_data": True, "models": True}
MAY_BE_EMPTY = "external_data"
# Problems of one kind that a message lists before it says only how many there are.
PROBLEMS_LISTED = 10
# The earliest date that a ZIP can hold: the same scores give the same bytes on any day.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
UNIX, REGULAR_FILE = 3, 0o100644
SHORT = reprlib.Repr()  # YAML may nest what it repeats, so that a value written out would fill the memory
SHORT.maxlevel = 2


@dataclass(frozen=True)
class System:
    """
    One system of a submission.

    Fields:
        description (`dict[str, Any]`): The fields of `DESCRIPTION_FIELDS`; its `name` names the files.
        scores (`dict[str, float]`): Score of each clip by its file name, in the order of the reference list.
    """

    description: dict[str, Any]
    scores: dict[str, float]


def check_description(description: Mapping[str, Any], source: str = "the description") -> dict[str, Any]:
    """
    Returns the description of a system with its fields in the order of `DESCRIPTION_FIELDS`; a single string in place
    of a list becomes one.

    Args:
        description (`Mapping`): `name` (letters, digits, ".", "_", "-"), `authors`, `contact`, `external_data` (may be
            an empty list: none was used) and `models`.
        source (`str`): Where it comes from, for messages.

    Raises:
        ValueError: A field is missing, empty, unknown or of another type, or the name cannot name a file.
    """
    problems = [f"no field {name}" for name in DESCRIPTION_FIELDS if description.get(name) is None]
    problems += [f"unknown field {name}" for name in description if name not in DESCRIPTION_FIELDS]
    checked = {}
    for name, is_list in DESCRIPTION_FIELDS.items():
        value = description.get(name)
        checked[name] = [value] if is_list and isinstance(value, str) else value
        if value is not None:
            problems += _field_problems(name, checked[name], is_list)
    if problems:
        fields = ", ".join(DESCRIPTION_FIELDS)
        raise ValueError(f"{source}: {'; '.join(problems)}. The fields of a system are {fields}.")
    return checked


def _field_problems(name: str, value: Any, is_list: bool) -> list[str]:
    """Says what is wrong with a field that is there."""
    texts = value if is_list else [value]
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        return [f"{name} must be {'a list of texts' if is_list else 'a text'}, got {SHORT.repr(value)}"]
    if not texts and name != MAY_BE_EMPTY:
        return [f"{name} is empty"]
    if name == "name" and not SYSTEM_NAME.fullmatch(value):
        return [f"the name {value!r} cannot name a file; use up to 64 letters, digits, '.', '_' and '-'"]
    return []


def read_description(path: str | Path) -> dict[str, Any]:
    """
    Reads the fields of a YAML file that describes a system; `check_description` says which.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold fields such as `name: my-system`, and holds none.")
    return content


def read_names(path: str | Path) -> list[str]:
    """
    Reads the file names of a reference list, in its order, without a leading "/".

    Args:
        path (`str` or `Path`): A table with the column `wav_file_name`, such as the challenge's `test.csv`.

    Raises:
        ValueError: As for `read_table`; or a name is there twice.
    """
    columns, rows = read_table(path)
    column = find_column(columns, AUDIO_COLUMNS, path)
    names = [str(row[column]).lstrip("/") for _, row in rows]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} names occur more than once: {_listed(repeated)}.")
    return names


def read_scores(path: str | Path, reference: Sequence[str] | None = None) -> tuple[dict[str, float], list[str]]:
    """
    Reads the scores of a system and checks them.

    Args:
        path (`str` or `Path`): A table with a column `wav_file_name` and one of `pred_score`, `prediction_score` and
            `score`, such as `xacle score` and `xacle ensemble` write.
        reference (`Sequence[str]`, *optional*): File names that must have a score, and no others; by default any 3,000.

    Returns:
        The score of each file name, in the order of the reference, or else of the table; and warnings: scores outside
        0-10, and scores that are all the same.

    Raises:
        ValueError: As for `read_table`; or clips are missing, unknown or repeated, a name is not that of a WAV
            file, or a score is not a finite number. The message lists all of it.
    """
    columns, rows = read_table(path)
    file_column, score_column = (find_column(columns, names, path) for names in (AUDIO_COLUMNS, PREDICTION_COLUMNS))
    pairs = [(str(row[file_column]).lstrip("/"), _number(row[score_column])) for _, row in rows]
    names = [name for name, _ in pairs]
    problems = _name_problems(names, reference)
    problems |= {"scores that are no finite numbers": [name for name, score in pairs if not math.isfinite(score)]}
    told = [f"{len(found)} {kind}: {_listed(found)}" for kind, found in problems.items() if found]
    if reference is None and len(names) != NUM_TEST_CLIPS:
        told.append(f"{len(names)} rows, but the test set has {NUM_TEST_CLIPS}; for another set give its list")
    if told:
        raise ValueError(f"{path}: {'; '.join(told)}.")
    scores = dict(pairs)
    return {name: scores[name] for name in reference or names}, _warnings(path, scores)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:PROBLEMS_LISTED]) + (", ..." if len(names) > PROBLEMS_LISTED else "")


def _name_problems(names: list[str], reference: Sequence[str] | None) -> dict[str, list[str]]:
    """Returns the file names that are wrong or missing, by what is wrong with them."""
    own, wanted = Counter(names), set(reference or [])
    problems = {"clips that occur more than once": [name for name, count in own.items() if count > 1]}
    if reference is None:
        return problems | {"names that are not those of WAV files": [name for name in own if not _is_wav(name)]}
    return problems | {
        "clips of the list without a score": [name for name in reference if name not in own],
        "clips that are not in the list": [name for name in own if name not in wanted],
    }


def _is_wav(name: str) -> bool:
    return name.lower().endswith(".wav") and not re.search(r"[/\\\s]", name)


def _warnings(path: str | Path, scores: Mapping[str, float]) -> list[str]:
    low, high = SCORE_RANGE
    outside = [name for name, score in scores.items() if not low <= score <= high]
    warnings = []
    if outside:
        span = f"{min(scores.values()):g} to {max(scores.values()):g}"
        warnings.append(
            f"{path}: {len(outside)} scores are outside {low:g}-{high:g} (all: {span}): {_listed(outside)}."
        )
    if len(set(scores.values())) == 1:
        warnings.append(f"{path}: all scores are the same, so that every correlation is 0.")
    return warnings


def scores_csv(scores: Mapping[str, float]) -> bytes:
    """Returns the challenge's CSV, with the header `wav_file_name,pred_score` and each score exactly as computed."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(
        [XACLE_COLUMNS, *((name, repr(score)) for name, score in scores.items())]
    )
    return file.getvalue().encode()


def pack(systems: Iterable[System], output: str | Path) -> list[str]:
    """
    Write the ZIP of a submission: `<name>.csv` and `<name>.yaml` of each system. Its bytes depend on its contents
    alone, and it appears whole or not at all.

    Args:
        systems (iterable of `System`): At least one, with different names (also where case does not count).
        output (`str` or `Path`): The `.zip` file, which is replaced.

    Returns:
        The names of the files in it.

    Raises:
        ValueError: There is no system, two have the same name, or the output is not named `.zip`.
    """
    systems = list(systems)
    repeated = [name for name, count in Counter(s.description["name"].lower() for s in systems).items() if count > 1]
    if not systems or repeated:
        raise ValueError(f"Each system needs a name of its own: {_listed(repeated)}." if repeated else "No system.")
    if Path(output).suffix.lower() != ".zip":
        raise ValueError(f"{output}: a submission is a .zip file.")
    files = {}
    for system in systems:
        name, description = system.description["name"], system.description
        files[f"{name}.csv"] = scores_csv(system.scores)
        files[f"{name}.yaml"] = yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode()
    write_whole(output, _zip(files))
    return list(files)


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, UNIX
            entry.external_attr = REGULAR_FILE << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def describe_systems(
    options: Mapping[str, Any], names: Sequence[str], files: Sequence[str | Path], num_systems: int
) -> list[dict[str, Any]]:
    """
    Returns the checked description of each system of a submission.

    Args:
        options (`Mapping[str, Any]`): Fields that all systems share; those that are `None` or empty count as not given.
        names (`Sequence[str]`): One for each system, or none where the files have them.
        files (`Sequence`): YAML files with the fields: one for all systems, one for each, or none.
        num_systems (`int`): How many there are.

    Raises:
        ValueError: The numbers of names or files do not fit; a field is in a file and in the options; or as for
            `check_description`.
    """
    if len(names) not in (0, num_systems) or len(files) not in (0, 1, num_systems):
        raise ValueError(
            f"{num_systems} tables of scores need as many names, got {len(names)}, and one description for all or one "
            f"for each, got {len(files)}."
        )
    given = {name: value for name, value in options.items() if value}
    described = []
    for index in range(num_systems):
        source = str(files[index if len(files) > 1 else 0]) if files else "the options"
        fields = read_description(source) if files else {MAY_BE_EMPTY: []}
        more = given | ({"name": names[index]} if names else {})
        twice = [name for name in more if files and name in fields]
        if twice:
            raise ValueError(f"{source}: has the field {', '.join(twice)}, which is also an option; give it once.")
        described.append(check_description(fields | more, source))
    return described


def submit_tables(
    tables: Sequence[str | Path],
    descriptions: Sequence[Mapping[str, Any]],
    output: str | Path,
    reference: str | Path | None = None,
) -> tuple[list[str], list[str]]:
    """
    Check the scores of one or more systems and pack them.

    Args:
        tables (`Sequence`): Tables of scores, one per system, as `read_scores` takes them.
        descriptions (`Sequence[Mapping]`): One per system, as `check_description` takes them.
        output (`str` or `Path`): The `.zip` file.
        reference (`str` or `Path`, *optional*): Table with the names of the clips; by default there must be 3,000.

    Returns:
        The names of the files in the ZIP, and warnings.

    Raises:
        ValueError: As for `read_scores`, `check_description` and `pack`; then nothing is written.
    """
    names = None if reference is None else read_names(reference)
    systems, warnings = [], []
    for table, description in zip(tables, descriptions, strict=True):
        scores, found = read_scores(table, names)
        systems.append(System(check_description(description), scores))
        warnings += found
    return pack(systems, output), warnings
