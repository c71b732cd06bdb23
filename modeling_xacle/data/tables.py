"""Tables as files: one writer for every format that `read_table` reads, chosen by the file's suffix."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from .files import write_whole

# Formats that are written row by row, and all.
STREAMED_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_SUFFIXES = (*STREAMED_SUFFIXES, ".parquet")


def check_table_suffix(path: str | Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> None:
    """
    Refuse a format that cannot be written, before anything is computed.

    Raises:
        ValueError: The file's suffix is none of these.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{path}: write to a file that ends in {', '.join(suffixes)}.")


def row_writer(file: TextIO, suffix: str, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    """A function that writes a row in one of `STREAMED_SUFFIXES`; the header, where there is one, is written."""
    if suffix == ".jsonl":
        return lambda row: file.write(  # also keys that the first row does not have
            json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False, default=str) + "\n"
        )
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(columns)
    return lambda row: writer.writerow([_cell(row[name]) for name in columns])


def _plain(value: Any) -> Any:
    """A value of a row without the bytes of a sound: the path stands for it."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["path"]
    return None if isinstance(value, bytes) else value


def _cell(value: Any) -> Any:
    """A value as CSV holds it: lists and objects as JSON."""
    value = _plain(value)
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


def table_text(suffix: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows in one of `STREAMED_SUFFIXES`, with all columns that any of them has."""
    columns, rows = _regular(rows)
    file = io.StringIO(newline="")
    write = row_writer(file, suffix, columns)
    for row in rows:
        write(row)
    return file.getvalue()


def write_table(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """
    Write a table in the format that the file's suffix names, whole or not at all.

    Args:
        path (`str` or `Path`): CSV, TSV, JSON lines or Parquet file.
        rows (iterable of mappings): At least one; the table has all columns that any of them has.

    Raises:
        ValueError: Another suffix; or Parquet cannot hold a column, because its values are of several kinds.
    """
    check_table_suffix(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        write_whole(path, _parquet_bytes(path, rows))
    else:  # a caption may hold half of a character: that is written as in "\ud83d"
        write_whole(path, table_text(suffix, rows).encode(errors="backslashreplace"))


def _regular(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns that any row has, and rows that have all of them."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [{name: row.get(name) for name in columns} for row in rows]


def _parquet_bytes(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    _, rows = _regular(rows)
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist([{name: _plain(row[name]) for name in row} for row in rows]), file)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise ValueError(
            f"{path}: Parquet cannot hold these values ({error}); write {', '.join(STREAMED_SUFFIXES)} instead."
        ) from error
    return file.getvalue()
