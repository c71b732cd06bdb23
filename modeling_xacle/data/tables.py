"""Tables as files: CSV, TSV, JSON lines and Parquet, by the file's suffix, read and written."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from .files import write_whole

# Formats that are written row by row, and all.
STREAMED_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_SUFFIXES = (*STREAMED_SUFFIXES, ".parquet")
ROWS_PER_READ = 100  # of Parquet: clips of ten seconds may be in it


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


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def read_table(path: str | Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """
    Columns of a table, and its rows, read as they are asked for, each with the number of its (last) line.

    Args:
        path (`str` or `Path`): A UTF-8 file: CSV or TSV (`.tsv`) with a header line, or JSON lines (`.jsonl`), whose
            columns are the keys of the first line; or a Parquet file (`.parquet`), whose rows count as lines from 1.
            Values of CSV and TSV are strings, those of the others plain Python values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8, not Parquet or has no rows; a column occurs twice; a quote is broken; a row
            has more or fewer fields than the header; a line is not a JSON object with the keys of the first.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table.")
    readers = {".tsv": _tsv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    rows = _decoded(path, readers.get(Path(path).suffix.lower(), _csv_rows)(path))
    columns = next(rows, None)
    if not columns:
        raise ValueError(f"{path}: the table is empty.")
    repeated = sorted(name for name, count in Counter(columns).items() if count > 1)
    if repeated:
        raise ValueError(f"{path}: the header has more than one column {', '.join(repeated)}; rename or remove one.")
    return columns, rows


def _decoded(path: str | Path, lines: Iterator[Any]) -> Iterator[Any]:
    """The header and the rows, with what goes wrong in decoding told in words."""
    count = 0
    try:
        for line in lines:
            count += 1
            yield line
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a sound CSV file, a quote may be missing ({error}).") from error
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a sound Parquet file ({error}).") from error
    if count == 1:
        raise ValueError(f"{path}: the table has a header but no rows.")


def _csv_rows(path: str | Path, delimiter: str = ",") -> Iterator[Any]:
    """The header, then line numbers and rows of a CSV file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        yield columns
        for fields in reader:
            if fields and len(fields) != len(columns):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(columns)}; "
                    "captions with commas need quotes."
                )
            if fields:
                yield reader.line_num, dict(zip(columns, fields, strict=True))


def _tsv_rows(path: str | Path) -> Iterator[Any]:
    """As `_csv_rows`, with tabs between the fields."""
    return _csv_rows(path, delimiter="\t")


def _parquet_rows(path: str | Path) -> Iterator[Any]:
    """The column names, then numbers from 1 and rows of a Parquet file, a few in memory at a time."""
    with pq.ParquetFile(path) as file:
        yield file.schema_arrow.names
        batches = file.iter_batches(batch_size=ROWS_PER_READ)
        yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1)


def _json_rows(path: str | Path) -> Iterator[Any]:
    """The keys of the first line, then line numbers and rows of a JSON lines file."""
    columns: list[str] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}.")
            if not columns:
                columns = list(row)
                yield columns
            missing = [name for name in columns if name not in row]
            if missing:
                raise ValueError(f"{path}, line {number}: the key {', '.join(missing)} of the first line is missing.")
            yield number, row
