"""Reads and writes table files. A file's suffix chooses its format; only `FORMATS` knows the formats."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from .files import json_text, parse_json, whole_file

ROWS_PER_READ = 100  # of Parquet, which may hold clips of ten seconds
ROWS_PER_CHUNK = 10_000
LARGEST_CELL = 2**27  # characters, in CSV; the default of 2**17 is less than what is written here

Row = Mapping[str, Any]


def read_table(path: str | Path, name: str | None = None) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """
    Returns the columns of a table and an iterator over its rows, each with the number of its (last) line.

    Args:
        path (`str` or `Path`): A UTF-8 file: CSV or TSV (`.tsv`) with a header line, or JSON lines (`.jsonl`), whose
            columns are the keys of the first line; or a Parquet file (`.parquet`), whose rows count as lines from 1.
            Values of CSV and TSV are strings, those of the others plain Python values.
        name (`str`, *optional*): What messages call it, by default its path.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not UTF-8, not Parquet or has no rows; a column occurs twice; a quote is broken; a row
            has more or fewer fields than the header; a line is not a JSON object with the keys of the first.
    """
    name = name or (str(path) if str(path).strip() else repr(str(path)))
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no such table.")
    rows = _decoded(name, FORMATS.get(Path(path).suffix.lower(), FORMATS[".csv"]).read(path))
    columns = next(rows, None)
    if not columns:
        raise ValueError(f"{name}: the table is empty.")
    repeated = sorted(column for column, count in Counter(columns).items() if count > 1)
    if repeated:
        raise ValueError(f"{name}: the header has more than one column {', '.join(repeated)}; rename or remove one.")
    return columns, rows


def write_table(path: str | Path, rows: Iterable[Row]) -> None:
    """
    Write a table in the format of the file's suffix, whole or not at all.

    Args:
        path (`str` or `Path`): CSV, TSV, JSON lines or Parquet file.
        rows (iterable of mappings): At least one; the table has every column that any row has.

    Raises:
        ValueError: The suffix is unknown, or Parquet cannot hold a column because its values are of several kinds.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with table_writer(path, columns) as write:
        for row in rows:
            write({name: row.get(name) for name in columns})


@contextmanager
def table_writer(path: str | Path, columns: Sequence[str]) -> Iterator[Callable[[Row], Any]]:
    """
    Gives a function that writes one row, in the format of the file's suffix. When the context ends, the table is there
    whole, or not at all.

    Raises:
        ValueError: The suffix is unknown, or Parquet cannot hold a column because its values are of several kinds.
    """
    check_table_suffix(path)
    form = FORMATS[Path(path).suffix.lower()]
    # A caption may hold half of a character, which text files write as "\ud83d".
    text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""} if form.is_text else {}
    try:
        with (
            whole_file(path) as unfinished,
            open(unfinished, "w" if form.is_text else "wb", **text) as file,
            form.write(file, columns) as write,
        ):
            yield write
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        others = [suffix for suffix, form in FORMATS.items() if form.is_text]
        raise ValueError(
            f"{path}: Parquet cannot hold these values ({error}); write {', '.join(others)} instead."
        ) from error


def check_table_suffix(path: str | Path) -> None:
    """
    Refuse a format that cannot be written, before anything is computed.

    Raises:
        ValueError: The file's suffix is none of `FORMATS`.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: write to a file that ends in {', '.join(FORMATS)}.")


def csv_text(rows: Sequence[Row]) -> str:
    """Returns rows, all with the same keys, as CSV."""
    file = io.StringIO(newline="")
    with _csv_writer(file, list(rows[0])) as write:
        for row in rows:
            write(row)
    return file.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """Returns rows, all with the same keys, as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    cells = [[str(value).replace("|", "\\|").replace("\n", " ") for value in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _decoded(name: str, lines: Iterator[Any]) -> Iterator[Any]:
    """Yields the header and the rows, and explains in words what goes wrong in decoding."""
    count = 0
    try:
        for line in lines:
            count += 1
            yield line
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise ValueError(f"{name}: not a sound CSV file, a quote may be missing ({error}).") from error
    except pa.ArrowException as error:
        raise ValueError(f"{name}: not a sound Parquet file ({error}).") from error
    except ValueError as error:  # of a reader, which knows the line
        raise ValueError(f"{name}, {error}") from error
    if count == 1:
        raise ValueError(f"{name}: the table has a header but no rows.")


def _csv_rows(path: str | Path, delimiter: str = ",") -> Iterator[Any]:
    """Yields the header, then line numbers and rows of a CSV file."""
    csv.field_size_limit(LARGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        yield columns
        for fields in reader:
            if fields and len(fields) != len(columns):
                raise ValueError(
                    f"line {reader.line_num}: {len(fields)} fields, but the header has {len(columns)}; "
                    "captions with commas need quotes."
                )
            if fields:
                yield reader.line_num, dict(zip(columns, fields, strict=True))


def _parquet_rows(path: str | Path) -> Iterator[Any]:
    """Yields the column names, then numbers from 1 and rows of a Parquet file; holds only a few in memory."""
    try:
        with pq.ParquetFile(path) as file:
            yield file.schema_arrow.names
            batches = file.iter_batches(batch_size=ROWS_PER_READ)
            yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1)
    except OSError as error:  # so Arrow says that the file is broken, besides its own exceptions
        raise pa.ArrowInvalid(str(error)) from error


def _json_rows(path: str | Path) -> Iterator[Any]:
    """Yields the keys of the first line, then line numbers and rows of a JSON lines file."""
    columns: list[str] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = parse_json(line, f"line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: a JSON object is needed, not {type(row).__name__}.")
            if not columns:
                columns = list(row)
                yield columns
            missing = [name for name in columns if name not in row]
            if missing:
                raise ValueError(f"line {number}: the key {', '.join(missing)} of the first line is missing.")
            yield number, row


def _plain(value: Any) -> Any:
    """Returns a value without the bytes of a sound, for which its path stands."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["path"]
    return None if isinstance(value, bytes) else value


def _cell(value: Any) -> Any:
    """Returns a value as CSV holds it: lists and objects as JSON."""
    value = _plain(value)
    return json_text(value) if isinstance(value, (list, dict)) else value


@contextmanager
def _csv_writer(file: IO[str], columns: Sequence[str], delimiter: str = ",") -> Iterator[Callable[[Row], Any]]:
    plain = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    quoted = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(cells: Sequence[Any]) -> None:
        """Quotes carriage returns too: they also end a line, but `csv` quotes a cell for line feeds alone."""
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else plain).writerow(cells)

    write(columns)
    yield lambda row: write([_cell(row[name]) for name in columns])


@contextmanager
def _json_writer(file: IO[str], columns: Sequence[str]) -> Iterator[Callable[[Row], Any]]:
    yield lambda row: file.write(  # also writes keys that the first row lacks
        json_text({name: _plain(value) for name, value in row.items()}) + "\n"
    )


def _whole_characters(value: Any) -> Any:
    """Half of a character in a text is written as in "\\ud83d", as in the formats that are text."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@contextmanager
def _parquet_writer(file: IO[bytes], columns: Sequence[str]) -> Iterator[Callable[[Row], Any]]:
    """Keeps all rows in memory, as Arrow tables, because only all rows together tell the types of the columns."""
    rows: list[dict[str, Any]] = []
    chunks: list[pa.Table] = []

    def write(row: Row) -> None:
        rows.append({name: _whole_characters(_plain(row[name])) for name in columns})
        if len(rows) == ROWS_PER_CHUNK:
            chunks.append(pa.Table.from_pylist(rows))
            rows.clear()

    yield write
    if rows or not chunks:
        chunks.append(pa.Table.from_pylist(rows) if rows else pa.table({name: pa.nulls(0) for name in columns}))
    pq.write_table(pa.concat_tables(chunks, promote_options="permissive"), file)


@dataclass(frozen=True)
class Format:
    """
    A format of tables.

    Fields:
        read (callable): For a path, yields the columns, then pairs of a line number and a row; a `ValueError` begins
            with the line.
        write (callable): For an open file and the columns, returns a context whose value writes a row.
        is_text (`bool`): Whether the file is UTF-8 text.
    """

    read: Callable[[str | Path], Iterator[Any]]
    write: Callable[[IO, Sequence[str]], AbstractContextManager[Callable[[Row], Any]]]
    is_text: bool = True


FORMATS = {
    ".csv": Format(_csv_rows, _csv_writer),
    ".tsv": Format(partial(_csv_rows, delimiter="\t"), partial(_csv_writer, delimiter="\t")),
    ".jsonl": Format(_json_rows, _json_writer),
    ".parquet": Format(_parquet_rows, _parquet_writer, is_text=False),
}
