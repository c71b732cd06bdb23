"""Tables of sound-caption pairs: the one schema of every stage, reading, checking and writing."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datasets import Audio, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.table import embed_table_storage, table_cast
from huggingface_hub import metadata_load, metadata_save
from tqdm import tqdm

from ..feature_extraction_xacle import load_waveform

FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(decode=False),
        "text": Value("string"),
        "label": Value("float32"),
        "score": Value("float64"),
        "ratings": List(Value("float32")),
        "listener_ids": List(Value("string")),
        "source": Value("string"),
        "is_negative": Value("bool"),
    }
)
REQUIRED_COLUMNS = ("id", "audio", "text")
# Audio goes into columns as plain structs: encoding it as `Audio` needs torchcodec, casting to it does not.
STORAGE = Features({**FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})

# The first of these that a table has is taken: the challenge's spellings, in its files and in its READMEs, then others.
AUDIO_COLUMNS = ("wav_file_name", "wave_file_name", "audio", "path")
TEXT_COLUMNS = ("text", "caption")

LABEL_RANGE = (-1.0, 1.0)
SCORE_RANGE = (0.0, 10.0)

CARD = "README.md"
# Key of the card's metadata with the checksums of what `save_dataset` wrote: it replaces its own work and nothing else.
MANIFEST = "xacle_files"
# The Hub's names for numbers of rows below a limit.
SIZE_CATEGORIES = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
ROWS_PER_WRITE = 10_000
# Ten-second clips: some 30 to 200 MB in memory at a time.
EMBEDDED_ROWS_PER_WRITE = 100

# The loader reads one second more than it keeps.
PROBE_SECONDS = 0.01

# Unicode categories: control and format characters, surrogates.
DROPPED_CHARACTERS = ("Cc", "Cf", "Cs")


def clean_caption(text: str) -> str:
    """
    The caption in one line of normal form C: every run of whitespace is one space, without those at the ends, and
    control characters, invisible format characters and lone surrogates are gone.
    """
    kept = (char for char in text if char.isspace() or unicodedata.category(char) not in DROPPED_CHARACTERS)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


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
        batches = file.iter_batches(batch_size=EMBEDDED_ROWS_PER_WRITE)
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


def find_column(
    columns: Iterable[str], candidates: Iterable[str], table: str | Path, required: bool = True
) -> str | None:
    """
    The first of the candidates that is a column of the table; `None` if there is none and none is required.

    Raises:
        ValueError: A required column is missing.
    """
    columns, candidates = list(columns), list(candidates)
    found = next((name for name in candidates if name in columns), None)
    if found is None and required:
        raise ValueError(
            f"{table}: no column {' or '.join(candidates)}; it has {', '.join(columns)}. Rename the column that holds "
            "it."
        )
    return found


def make_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """
    A table of pairs in the schema `FEATURES`.

    Args:
        rows (iterable of mappings): Plain Python values under the schema's names. `id`, `audio` and `text` are needed;
            `audio` is an absolute path, or a dict with `bytes` and `path`. A column of which no row has a value is left
            out of the table.

    Raises:
        ValueError: A needed value is missing, a column is unknown, or a path is relative; the row is named.
    """
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for number, row in enumerate(rows):
        _check_row(number, row)
        for name, values in columns.items():
            values.append(_audio_struct(row["audio"]) if name == "audio" else row.get(name))
    present = {
        name: values
        for name, values in columns.items()
        if name in REQUIRED_COLUMNS or any(value is not None for value in values)
    }
    dataset = Dataset.from_dict(present, features=Features({name: STORAGE[name] for name in present}))
    return dataset.cast_column("audio", FEATURES["audio"])


def _check_row(number: int, row: Mapping[str, Any]) -> None:
    name = f"row {number} ({row.get('id')})"
    missing = [column for column in REQUIRED_COLUMNS if row.get(column) is None]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} is missing.")
    unknown = [column for column in row if column not in FEATURES]
    if unknown:
        raise ValueError(f"{name}: unknown column {', '.join(unknown)}; the schema has {', '.join(FEATURES)}.")
    audio = row["audio"]
    if isinstance(audio, (str, os.PathLike)) and not os.path.isabs(audio):
        raise ValueError(f"{name}: the path {audio} is relative; give an absolute one, which holds from any folder.")


def _audio_struct(audio: Any) -> dict[str, Any]:
    if isinstance(audio, Mapping):
        return {"bytes": audio.get("bytes"), "path": audio.get("path")}
    return {"bytes": None, "path": os.fspath(audio)}


def check_rows(dataset: Dataset, check_files: bool = True) -> list[str]:
    """
    Problems of a table of pairs, each in words with the id of its row; an empty list if it is sound.

    Args:
        dataset (`Dataset`): Pairs in the schema.
        check_files (`bool`): Also look whether each sound that is not embedded exists on disk.
    """
    rows = dataset.remove_columns("audio")
    ids = rows["id"][:]
    problems = [f"{id}: the id occurs {count} times" for id, count in Counter(ids).items() if count > 1]
    for row in rows:
        problems += [f"{row['id']}: {problem}" for problem in _row_problems(row)]
    return problems + (_missing_files(ids, dataset) if check_files else [])


def _row_problems(row: Mapping[str, Any]) -> list[str]:
    problems = [] if clean_caption(row["text"] or "") else ["the text is empty"]
    problems += _range_problems("label", row.get("label"), LABEL_RANGE)
    problems += _range_problems("score", row.get("score"), SCORE_RANGE)
    ratings, listeners = row.get("ratings") or [], row.get("listener_ids")
    for rating in ratings:
        problems += _range_problems("rating", rating, SCORE_RANGE)
    if listeners is not None and len(listeners) != len(ratings):
        problems.append(f"{len(ratings)} ratings by {len(listeners)} listeners")
    return problems


def _range_problems(name: str, value: float | None, limits: tuple[float, float]) -> list[str]:
    low, high = limits
    if value is None or low <= value <= high:
        return []
    return [
        f"the {name} is not a number" if math.isnan(value) else f"the {name} {value:g} is not in {low:g} to {high:g}"
    ]


def _missing_files(ids: list[str], dataset: Dataset) -> list[str]:
    """Sounds that are neither embedded nor on disk; each file is looked up once, and no bytes are copied."""
    table = dataset.select_columns("audio").with_format("arrow")
    problems, exists = [], cache(os.path.isfile)
    for start in range(0, len(dataset), ROWS_PER_WRITE):
        audio = table[start : start + ROWS_PER_WRITE]["audio"]
        embedded = pc.struct_field(audio, "bytes").is_valid().to_pylist()
        paths = pc.struct_field(audio, "path").to_pylist()
        for id, has_bytes, path in zip(ids[start:], embedded, paths, strict=False):
            if not has_bytes and (path is None or not exists(path)):
                problems.append(f"{id}: " + ("it has no sound" if path is None else f"there is no file {path}"))
    return problems


def unusable_audio(paths: Iterable[str | Path]) -> dict[str, str]:
    """
    The sounds that [`load_waveform`] refuses, and why: missing, empty, truncated, or not audio. Each file is opened
    once, and its first second decoded.
    """
    unique = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor() as pool:
        reasons = tqdm(pool.map(_reason_against, unique), total=len(unique), desc="sounds", unit="file", disable=None)
        return {path: reason for path, reason in zip(unique, reasons, strict=True) if reason}


def _reason_against(path: str) -> str:
    try:
        load_waveform(path, max_seconds=PROBE_SECONDS)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def save_dataset(
    splits: Mapping[str, Dataset] | DatasetDict,
    output: str | Path,
    embed_audio: bool = False,
    card: str | None = None,
    attachments: Mapping[str, str | bytes] | None = None,
    licence: str | None = None,
) -> None:
    """
    Write a dataset folder that `load_pairs` and `datasets.load_dataset` read: `<split>.parquet` and README.md. It
    appears whole or not at all, and replaces an earlier dataset at the same place.

    Args:
        splits (mapping of names to `Dataset`): Pairs in the schema. A column that only some splits have is empty in the
            others' files.
        output (`str` or `Path`): The folder.
        embed_audio (`bool`): Put the bytes of each sound into the table, for each of its rows, instead of its path
            only.
        card (`str`, *optional*): Markdown text of README.md, without metadata. Its title is the dataset's name.
        attachments (mapping of file names to contents, *optional*): Further files of the folder, a report or an image.
        licence (`str`, *optional*): The Hub's name for it, such as `"mit"`; `"other"` where the card tells the terms.

    Raises:
        ValueError: There is something else at `output`; a split's name or a column is not in the schema.
        FileNotFoundError: A sound to embed is missing.
    """
    output = Path(output).absolute()
    check_replaceable(output)
    columns = _all_columns(splits)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    for split, dataset in splits.items():
        _write_parquet(dataset, columns, partial / f"{split}.parquet", embed_audio)
    for name, content in (attachments or {}).items():
        (partial / name).write_bytes(content.encode() if isinstance(content, str) else content)
    _write_card(partial / CARD, card or "# Sound-caption pairs\n", splits, licence)
    replace_folder(partial, output)


def check_replaceable(output: Path) -> None:
    """Refuse to replace what is not a dataset of `save_dataset`, or holds files that somebody added."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    card = output / CARD
    written = _read_metadata(card).get(MANIFEST)
    if written is None:
        raise ValueError(f"{output}: exists and is not a dataset that this wrote; choose another output.")
    added = sorted(entry.name for entry in output.iterdir() if entry.name not in (CARD, *written))
    if added:
        raise ValueError(f"{output}: holds files that would be lost, move them first: {', '.join(added)}.")


def _all_columns(splits: Mapping[str, Dataset]) -> list[str]:
    """Columns that any split has, in the schema's order."""
    if not splits:
        raise ValueError("There is no split to save.")
    for split, dataset in splits.items():
        if not SPLIT_NAME.fullmatch(split):
            raise ValueError(f"{split!r} is no name for a split: use letters, digits and underscores.")
        _check_columns(dataset, f"split {split}")
        unknown = [name for name in dataset.column_names if name not in FEATURES]
        if unknown:
            raise ValueError(
                f"split {split}: unknown column {', '.join(unknown)}; the schema has {', '.join(FEATURES)}."
            )
    return [name for name in FEATURES if any(name in dataset.column_names for dataset in splits.values())]


def _write_parquet(dataset: Dataset, columns: list[str], path: Path, embed_audio: bool) -> None:
    """One file of a split, in row groups small enough to hold in memory."""
    schema = Features({name: FEATURES[name] for name in columns}).arrow_schema
    dataset = dataset.with_format("arrow")
    rows = EMBEDDED_ROWS_PER_WRITE if embed_audio else ROWS_PER_WRITE
    bar = tqdm(total=len(dataset), desc=path.stem, unit="pair", disable=None)
    with bar, pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(dataset), rows):
            table = dataset[start : start + rows]
            for name in set(columns) - set(table.column_names):
                table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
            table = table_cast(table.select(columns), schema)
            writer.write_table(embed_table_storage(table) if embed_audio else table)
            bar.update(len(table))


def _read_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a dataset's card; nothing if there is no card."""
    try:
        return (metadata_load(card) or {}) if card.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: its metadata, between the lines of three hyphens, is no YAML ({error}).") from error


def _write_card(path: Path, text: str, splits: Mapping[str, Dataset], licence: str | None) -> None:
    """README.md with the metadata by which the Hub, and the next run, know the folder's files."""
    checksums = {entry.name: _checksum(entry) for entry in sorted(path.parent.iterdir())}
    path.write_text(text, encoding="utf-8")
    config = {
        "config_name": "default",
        "data_files": [{"split": split, "path": f"{split}.parquet"} for split in splits],
        # `load_dataset` caches by this metadata: without the content in it, a remade dataset would load as it was.
        "description": "sha256 " + hashlib.sha256(repr(checksums).encode()).hexdigest(),
    }
    size = sum(map(len, splits.values()))
    metadata = {
        **({"license": licence} if licence else {}),
        "language": ["en"],
        "size_categories": [next((name for limit, name in SIZE_CATEGORIES if size < limit), "other")],
        "tags": ["audio-text-alignment", "audio"],
        "configs": [config],
        MANIFEST: checksums,
    }
    metadata_save(path, metadata)


def dataset_licence(name_or_path: str | Path) -> str | None:
    """The licence that the card of a dataset folder tells; `None` of one that tells none, or is not a folder."""
    card = Path(name_or_path, CARD)
    return _read_metadata(card).get("license")


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(partial: Path, output: Path) -> None:
    """Put the finished folder in its place; an earlier one is moved away first and removed last."""
    earlier = output.with_name(f".{output.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        output.rename(earlier)
    partial.rename(output)
    shutil.rmtree(earlier, ignore_errors=True)


def load_pairs(name_or_path: str | Path, split: str | None = None) -> DatasetDict | Dataset:
    """
    Load a dataset of pairs in the schema; its sounds are not decoded.

    Args:
        name_or_path (`str` or `Path`): A folder that a script of `dataset_scripts/` wrote, or a dataset id on the Hub.
        split (`str`, *optional*): The one split to give; by default a `DatasetDict` of all.

    Returns:
        Splits with the columns of which they have values, typed as in `FEATURES`; further columns stay as they are.

    Raises:
        FileNotFoundError: There is neither such a folder nor such a dataset on the Hub.
        ValueError: The dataset is broken, has no such split, lacks a column, or has one of another type.
    """
    try:
        splits = load_dataset(str(name_or_path))
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name_or_path}: neither a dataset folder nor a dataset on the Hub ({error}). Make one with a script of "
            "dataset_scripts/."
        ) from error
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{name_or_path}: a file is broken, or the splits' columns differ ({reason}).") from error
    except (ValueError, StopIteration, yaml.YAMLError) as error:  # a JSON lines file without a line; a broken card
        reason = str(error) or "a file has no rows"
        raise ValueError(f"{name_or_path}: cannot be read, a split may be empty ({reason}).") from error
    if split is None:
        return DatasetDict({name: _in_schema(dataset, name_or_path) for name, dataset in splits.items()})
    if split not in splits:
        raise ValueError(f"{name_or_path}: no split {split}; it has {', '.join(splits)}.")
    return _in_schema(splits[split], name_or_path)


def _in_schema(dataset: Dataset, name: str | Path) -> Dataset:
    """The dataset with the schema's types, without columns that are empty in this split."""
    _check_columns(dataset, name)
    for column in [column for column in FEATURES if column in dataset.column_names]:
        if dataset.data.column(column).null_count == len(dataset) and column not in REQUIRED_COLUMNS:
            dataset = dataset.remove_columns(column)
        elif dataset.features[column] != FEATURES[column]:
            try:
                dataset = dataset.cast_column(column, FEATURES[column])
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{name}: the column {column} must be {FEATURES[column]}, not {dataset.features[column]} ({error})."
                ) from error
    return dataset


def _check_columns(dataset: Dataset, name: str | Path) -> None:
    missing = [column for column in REQUIRED_COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name}: no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}. Rename its columns, or "
            "make it anew with a script of dataset_scripts/."
        )
