"""Reads tables of scores with their keys, and joins them so that each row of one meets its own row of the others."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..data.columns import AUDIO_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS, find_column
from ..data.files import file_digest, read_json
from ..data.tables import read_table

ID_COLUMN = "id"
STATUS_COLUMN = "status"
# Keys that a message lists before it says only how many there are.
KEYS_LISTED = 10
# Scores may be on any scale; larger ones are mistakes, and their squares would not be numbers.
LARGEST_SCORE = 1e9

Key = tuple[str, ...]


@dataclass(frozen=True)
class ScoreTable:
    """
    A table of scores.

    Fields:
        path (`str`): The file it was read from, for messages.
        key_columns (`tuple[str, ...]`): Columns that tell its rows apart.
        keys (`list[tuple[str, ...]]` of length N): Their values, sounds without a leading "/".
        scores (`np.ndarray` of shape `(N,)`): float64; NaN where the table has "nan", or an error as `status`.
        rows (`list[dict[str, Any]]` of length N): All columns as read; of an embedded sound, only the path.
        score_column (`str`): The column of the scores.
    """

    path: str
    key_columns: tuple[str, ...]
    keys: list[Key]
    scores: np.ndarray
    rows: list[dict[str, Any]]
    score_column: str = ""

    @property
    def scorer(self) -> dict[str, str | None] | None:
        """
        `model`, `revision` and `signature` of what gave the scores: from the sidecar of `xacle score`, if it is of this
        very table, or from the column `signature` that goes with the scores; `None` if there is neither.
        """
        sidecar = Path(f"{self.path}.json")
        told = read_json(sidecar) if sidecar.is_file() else None
        if isinstance(told, dict) and told.get("output_sha256") == file_digest(self.path):
            return {name: told.get(name) for name in ("model", "revision", "signature")}
        signatures = {str(row.get(f"{prefix_of(self.score_column)}signature") or "") for row in self.rows} - {""}
        if not signatures:
            return None
        return {"model": None, "revision": None, "signature": " and ".join(sorted(signatures))}


class MergedScores(NamedTuple):
    """
    The pairs that the official script would compare.

    Fields:
        scores (`np.ndarray` of shape `(2, M)`): Predictions and references.
        prediction_rows (`np.ndarray` of shape `(M,)`): Row of the prediction that each pair comes from.
        reference_rows (`np.ndarray` of shape `(M,)`): Row of the reference that each pair comes from.
        num_missing (`int`): Rows of the reference that have no prediction and vanish.
        num_extra (`int`): Rows of the prediction that have no reference and vanish.
        num_multiplied (`int`): Pairs beyond the first of a key that a side has more than once.
    """

    scores: np.ndarray
    prediction_rows: np.ndarray
    reference_rows: np.ndarray
    num_missing: int
    num_extra: int
    num_multiplied: int


def read_score_table(
    path: str | Path,
    score_columns: Sequence[str] = PREDICTION_COLUMNS,
    key_columns: Sequence[str] | None = None,
) -> ScoreTable:
    """
    Read a table of scores: CSV, TSV, JSON lines or Parquet.

    Args:
        path (`str` or `Path`): The file.
        score_columns (`Sequence[str]`): The first of them that the table has holds the scores.
        key_columns (`Sequence[str]`, *optional*): Columns that tell the rows apart. By default `id`, or else the
            column of the sound, with that of the caption where a sound has several. With none, rows have no keys.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for `read_table`; no column for the score or the key; or a score is not a finite number, while
            the row's `status` is not an error.
    """
    path = str(path)
    columns, lines = read_table(path)
    score_column = find_column(columns, score_columns, path)
    if key_columns is not None:
        for column in key_columns:
            find_column(columns, [column], path)
    scores, rows = [], []
    for line, row in lines:
        scores.append(_score(row, score_column, f"{path}, line {line}"))
        rows.append({name: _without_bytes(value) for name, value in row.items()})
    key_columns = tuple(_default_key(columns, rows, path) if key_columns is None else key_columns)
    return ScoreTable(path, key_columns, _keys(rows, key_columns), np.array(scores), rows, score_column)


def prefix_of(score_column: str) -> str:
    """Returns what stands before `score` in a score's column, and before the names of the columns that go with it."""
    return score_column.removesuffix("score")


def _without_bytes(value: Any) -> Any:
    return value.get("path") if isinstance(value, dict) and "bytes" in value else value


def _score(row: dict[str, Any], column: str, place: str) -> float:
    status = row.get(prefix_of(column) + STATUS_COLUMN) or row.get(STATUS_COLUMN)  # `xacle score --prefix`
    if str(status or "").startswith("error"):
        return math.nan
    try:
        score = float(row[column])
    except (TypeError, ValueError, OverflowError):
        score = math.inf
    if abs(score) > LARGEST_SCORE:
        raise ValueError(
            f"{place}: the {column} {row[column]!r} is not a number between -{LARGEST_SCORE:g} and {LARGEST_SCORE:g}."
        )
    return score


def _default_key(columns: Sequence[str], rows: list[dict[str, Any]], path: str) -> tuple[str, ...]:
    if ID_COLUMN in columns:
        return (ID_COLUMN,)
    try:
        audio = find_column(columns, AUDIO_COLUMNS, path)
    except ValueError as error:
        raise ValueError(f"{error} Or name the columns that tell its rows apart.") from error
    text = find_column(columns, TEXT_COLUMNS, path, required=False)
    unique = len(set(_keys(rows, (audio,)))) == len(rows)
    return (audio,) if unique or text is None else (audio, text)


def _keys(rows: list[dict[str, Any]], columns: Sequence[str]) -> list[Key]:
    """Returns the values of the columns; sounds lose the "/" that some of the challenge's files put before them."""
    return [
        tuple(str(row[name]).lstrip("/") if name in AUDIO_COLUMNS else str(row[name]) for name in columns)
        for row in rows
    ]


def common_keys(tables: Sequence[ScoreTable]) -> list[list[Key]]:
    """
    Returns each table's keys, of a kind that all tables have: its own if all agree on the columns, or else the sound,
    with the caption where a sound has several.

    Raises:
        ValueError: The tables are keyed by different columns, and not all have the sounds.
    """
    kinds = {tuple("audio" if name in AUDIO_COLUMNS else name for name in table.key_columns) for table in tables}
    if len(kinds) == 1:
        return [table.keys for table in tables]
    audio = [next((name for name in AUDIO_COLUMNS if name in table.rows[0]), None) for table in tables]
    text = [next((name for name in TEXT_COLUMNS if name in table.rows[0]), None) for table in tables]
    if None in audio:
        keys = "; ".join(f"{table.path} by {', '.join(table.key_columns)}" for table in tables)
        raise ValueError(f"The tables name their rows differently, choose columns that all have: {keys}.")
    by_audio = [_keys(table.rows, (name,)) for table, name in zip(tables, audio, strict=True)]
    if None in text or all(len(set(keys)) == len(keys) for keys in by_audio):
        return by_audio
    return [_keys(table.rows, names) for table, *names in zip(tables, audio, text, strict=True)]


def _listed(keys: Sequence[Key]) -> str:
    shown = ", ".join(" | ".join(key) for key in keys[:KEYS_LISTED])
    return shown + (", ..." if len(keys) > KEYS_LISTED else "")


def _problems(path: str, keys: list[Key], reference: ScoreTable, reference_keys: list[Key]) -> Iterator[str]:
    """Describes missing, extra and duplicate keys relative to the reference."""
    own, wanted = Counter(keys), set(reference_keys)
    kinds = {
        "duplicate": [key for key, count in own.items() if count > 1],
        f"missing (in {reference.path} only)": [key for key in dict.fromkeys(reference_keys) if key not in own],
        f"extra (not in {reference.path})": [key for key in own if key not in wanted],
    }
    for kind, found in kinds.items():
        if found:
            yield f"{path}: {len(found)} {kind}: {_listed(found)}"


def check_sides(
    prediction: ScoreTable, reference: ScoreTable, scores: np.ndarray, prediction_columns: Sequence[str]
) -> None:
    """
    Refuse to compare a reference with itself.

    Args:
        prediction (`ScoreTable`), reference (`ScoreTable`): The two sides.
        scores (`np.ndarray` of shape `(2, N)`): Their scores, joined.
        prediction_columns (`Sequence[str]`): Columns among which the predictions were looked for; one that the user
            named may hold the same numbers as the reference.

    Raises:
        ValueError: Both sides are one column of one table, or hold the same numbers.
    """
    sides = [(os.path.realpath(table.path), table.score_column) for table in (prediction, reference)]
    is_guessed = tuple(prediction_columns) == PREDICTION_COLUMNS
    both = scores[:, ~np.isnan(scores).any(axis=0)]
    if sides[0] == sides[1] or (is_guessed and both.shape[1] > 1 and np.allclose(*both, rtol=1e-6, atol=1e-6)):
        raise ValueError(
            f"The column {prediction.score_column} of {prediction.path} holds the very numbers of the column "
            f"{reference.score_column} of {reference.path}, which would be compared with themselves: name the column "
            "of the predictions with --prediction-column."
        )


def join_tables(tables: Sequence[ScoreTable]) -> np.ndarray:
    """
    Returns the scores of the same pairs in several tables, whatever the order of their rows.

    Args:
        tables (`Sequence[ScoreTable]`): At least one; the last is the reference, whose order is kept. Tables that were
            keyed by different columns are joined by sound, and by caption where a sound has several.

    Returns:
        `np.ndarray` of shape `(num_tables, N)`: float64.

    Raises:
        ValueError: A key occurs twice in a table, or is not in all of them; the message lists up to 10 of each kind.
    """
    *others, reference = tables
    *other_keys, reference_keys = common_keys(tables)
    problems = list(_problems(reference.path, reference_keys, reference, reference_keys))
    for table, keys in zip(others, other_keys, strict=True):
        problems += _problems(table.path, keys, reference, reference_keys)
    if problems:
        raise ValueError("The tables do not have the same rows. " + "; ".join(problems) + ".")
    columns = []
    for table, keys in zip(others, other_keys, strict=True):
        place = {key: index for index, key in enumerate(keys)}
        columns.append(table.scores[[place[key] for key in reference_keys]])
    return np.stack([*columns, reference.scores])


def merge_as_official(prediction: ScoreTable, reference: ScoreTable) -> MergedScores:
    """
    Does the inner merge of the challenge's `evaluate.py`: rows that only one side has vanish, and a key that a side has
    more than once multiplies. Pairs are in the order of the prediction. Only the "/" before a name is forgiven here.
    """
    keys, reference_keys = common_keys([prediction, reference])
    sides = [
        pd.DataFrame({"key": own, name: range(len(own))}) for own, name in ((keys, "row"), (reference_keys, "other"))
    ]
    pairs = sides[0].merge(sides[1], on="key")
    rows, others = pairs["row"].to_numpy(), pairs["other"].to_numpy()
    return MergedScores(
        scores=np.stack([prediction.scores[rows], reference.scores[others]]),
        prediction_rows=rows,
        reference_rows=others,
        num_missing=len(reference_keys) - len(set(others.tolist())),
        num_extra=len(keys) - len(set(rows.tolist())),
        num_multiplied=len(pairs) - len({keys[row] for row in rows}),
    )


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns columns under their names: the first aligned left, the others right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in table)
    ]
    return "\n".join(line.rstrip() for line in lines)
