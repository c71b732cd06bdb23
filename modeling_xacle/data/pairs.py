"""Makes, checks, saves and loads datasets of sound-caption pairs."""

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datasets import Dataset, DatasetDict, Features, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.table import embed_table_storage, table_cast
from huggingface_hub import metadata_save
from tqdm import tqdm

from ..waveforms_xacle import load_waveform
from .columns import FEATURES, LABEL_RANGE, REQUIRED_COLUMNS, SCORE_RANGE, STORAGE, clean_caption
from .files import CARD, MANIFEST, check_replaceable, file_digest, read_metadata, whole_folder

# The Hub's name for datasets with fewer rows than each limit.
SIZE_CATEGORIES = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".arrow")
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
ROWS_PER_WRITE = 10_000
# With ten-second clips, this is some 30 to 200 MB in memory at a time.
EMBEDDED_ROWS_PER_WRITE = 100

# The loader reads one second more than it keeps.
PROBE_SECONDS = 0.01


def make_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """
    Make a table of pairs in the schema `FEATURES`.

    Args:
        rows (iterable of mappings): Plain Python values under the schema's names. `id`, `audio` and `text` are needed;
            `audio` is an absolute path, or a dict with `bytes` and `path`. A column without any value is left out of
            the table.

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
    Lists the problems of a table of pairs, each in words with its row's id; an empty list if there are none.

    Args:
        dataset (`Dataset`): Pairs in the schema.
        check_files (`bool`): Also check that each sound that is not embedded exists on disk.
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
    """Lists sounds that are neither embedded nor on disk; looks each file up once, and copies no bytes."""
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
    Returns the sounds that [`load_waveform`] refuses, and why: missing, empty, truncated, or not audio. Opens each file
    once and decodes its first second.
    """
    unique = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor() as pool:
        reasons = tqdm(pool.map(_reason_against, unique), total=len(unique), desc="sounds", unit="file", disable=None)
        return {path: reason for path, reason in zip(unique, reasons, strict=True) if reason}


def _reason_against(sound: str | bytes) -> str:
    try:
        load_waveform(sound, max_seconds=PROBE_SECONDS)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{sound}: " if isinstance(sound, str) else "<bytes>: ")
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
    Write a dataset folder that `load_pairs` and `datasets.load_dataset` read: `<split>.parquet` and README.md. It is
    never left half written, and replaces an earlier dataset in the same place.

    Args:
        splits (mapping of names to `Dataset`): Pairs in the schema. A column that only some splits have is empty in the
            other splits' files.
        output (`str` or `Path`): The folder.
        embed_audio (`bool`): Put each sound's bytes, not only its path, into the table, once for each of its
            rows.
        card (`str`, *optional*): Markdown text of README.md, without metadata. Its title is the dataset's name.
        attachments (mapping of file names to contents, *optional*): More files for the folder, such as a report.
        licence (`str`, *optional*): Its name on the Hub, such as `"mit"`; `"other"` if the card states the terms.

    Raises:
        ValueError: `output` holds something else; a split's name is invalid, or a column is not in the schema.
        FileNotFoundError: A sound to embed is missing.
    """
    output = Path(output).absolute()
    check_replaceable(output)
    columns = _all_columns(splits)
    with whole_folder(output) as partial:
        for split, dataset in splits.items():
            _write_parquet(dataset, columns, partial / f"{split}.parquet", embed_audio)
        for name, content in (attachments or {}).items():
            (partial / name).write_bytes(content.encode() if isinstance(content, str) else content)
        _write_card(partial / CARD, card or "# Sound-caption pairs\n", splits, licence)


def _all_columns(splits: Mapping[str, Dataset]) -> list[str]:
    """Returns the columns that any split has, in the schema's order."""
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
    """Write a split to one file, in row groups that fit into memory."""
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
            writer.write_table(_embed(table) if embed_audio else table)
            bar.update(len(table))


def _embed(table: pa.Table) -> pa.Table:
    """Puts the bytes of sounds into a table; checks those, because a file may have been cut since it was checked."""
    embedded = embed_table_storage(table)
    paths, sounds = pc.struct_field(table["audio"], "path"), pc.struct_field(embedded["audio"], "bytes")
    for path, sound in dict(zip(paths.to_pylist(), sounds, strict=True)).items():
        if path is not None and (reason := _reason_against(sound.as_py() or b"")):
            raise ValueError(f"{path}: {reason} It cannot be embedded.")
    return embedded


def _write_card(path: Path, text: str, splits: Mapping[str, Dataset], licence: str | None) -> None:
    """Write README.md, with the metadata that tells the Hub, and the next run, about the folder's files."""
    checksums = {entry.name: file_digest(entry) for entry in sorted(path.parent.iterdir())}
    path.write_text(text, encoding="utf-8")
    config = {
        "config_name": "default",
        "data_files": [{"split": split, "path": f"{split}.parquet"} for split in splits],
        # `load_dataset` caches by this metadata: without this digest, a remade dataset would load as it was before.
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
    """Returns the licence in a dataset folder's card; `None` if the card has none, or if it is not a folder."""
    card = Path(name_or_path, CARD)
    return read_metadata(card).get("license")


def load_pairs(name_or_path: str | Path, split: str | None = None) -> DatasetDict | Dataset:
    """
    Load a dataset of pairs in the schema; its sounds are not decoded.

    Args:
        name_or_path (`str` or `Path`): A folder that a script of `dataset_scripts/` wrote, or a dataset id on the Hub.
        split (`str`, *optional*): The one split to return; by default a `DatasetDict` of all.

    Returns:
        Splits with the columns that have values, typed as in `FEATURES`; further columns stay as they are.

    Raises:
        FileNotFoundError: There is neither such a folder nor such a dataset on the Hub.
        ValueError: The dataset is broken, has no such split, lacks a column, or has one of another type.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not any(path.suffix in DATA_SUFFIXES for path in folder.rglob("*")):
        raise ValueError(
            f"{folder}: holds no dataset ({', '.join(DATA_SUFFIXES)}). To score a folder of sounds, write a table with "
            "a row for each pair, or use `xacle matrix --audio-dir`."
        )
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
    except (ValueError, StopIteration, yaml.YAMLError) as error:  # an empty JSON lines file, or a broken card
        reason = str(error) or "a file has no rows"
        raise ValueError(f"{name_or_path}: cannot be read, a split may be empty ({reason}).") from error
    if split is None:
        return DatasetDict({name: _in_schema(dataset, name_or_path) for name, dataset in splits.items()})
    if split not in splits:
        raise ValueError(f"{name_or_path}: no split {split}; it has {', '.join(splits)}.")
    return _in_schema(splits[split], name_or_path)


def _in_schema(dataset: Dataset, name: str | Path) -> Dataset:
    """Returns the dataset with the schema's types, without columns that are empty in this split."""
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
