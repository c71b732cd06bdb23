"""
Writes the files of a scoring run: results as they come, in a folder beside the output; at the end the output, in the
order of the input, what it was made with, and the records of its rows. A run that was killed at any time and is started
again ends in the same bytes; if clips have changed since, it scores these again.
"""

import heapq
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from transformers.utils import logging

from ..data.files import file_digest, parse_json, read_json, whole_file, write_json
from ..data.tables import check_table_suffix, table_writer
from .changes import ClipState, is_unchanged

logger = logging.get_logger(__name__)

STATUSES = ("ok", "padded", "cut", "windowed", "error")
SETTINGS = "settings.json"
# Results of earlier runs of the same command; in this run, each process writes a file of its own.
EARLIER = "earlier.jsonl"
# Must be the same for a run to be continued; the rest of the sidecar is for the reader.
COMPARED = ("scorer", "table", "columns")

Record = dict[str, Any]
# Names and types of the fields that every record has, and of those of its clip's state.
RECORD = {"block": int, "row": int, "status": str}
CLIP_STATE = {"path": str, "size": int, "sha256": str}


def failure(reason: str) -> Record:
    """Returns the record of a pair without a score."""
    return {"score": None, "status": f"error: {reason}", "notes": ""}


def is_failure(record: Record) -> bool:
    """Returns True if the pair is to be tried again."""
    return record["status"].startswith("error")


def read_records(paths: Iterable[Path]) -> Iterator[tuple[int, dict[int, Record]]]:
    """
    Merges the results of several files, block by block of the table. In each file, blocks come in order; if several
    files have a row, the last file's result counts.

    Yields:
        The number of a block, and its results by row number.
    """
    streams = [_lines(path) for path in paths]
    merged = heapq.merge(*streams, key=lambda record: record["block"])
    for block, records in itertools.groupby(merged, key=lambda record: record["block"]):
        yield block, {record["row"]: record for record in records}


def _lines(path: Path) -> Iterator[Record]:
    """Yields the records of a file, without a last line that a killed process left half-written."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.endswith("\n"):
                record = _sound(parse_json(line, f"{path}, line {number}"), path, **RECORD)
                if record.get("clip"):
                    _sound(record["clip"], path, **CLIP_STATE)
                yield record


def _sound(content: Any, path: Path, /, **types: type) -> dict[str, Any]:
    """
    Returns the content of an earlier run's file if it is sound.

    Raises:
        ValueError: It is no JSON object, or a name is missing or its value of another type.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in types.items()):
        raise ValueError(f"{path}: is damaged; begin anew with --restart.")
    return content


class RecordReader:
    """Reads the results of blocks, which are asked for in ascending order; one block is in memory at a time."""

    def __init__(self, paths: Iterable[Path]):
        self._blocks = read_records(paths)
        self._next = next(self._blocks, None)

    def block(self, number: int) -> dict[int, Record]:
        """Returns a block's results by row number; an empty dict if there are none."""
        while self._next is not None and self._next[0] < number:
            self._next = next(self._blocks, None)
        return self._next[1] if self._next is not None and self._next[0] == number else {}


class ScoringFiles:
    """
    Output, sidecar, records and work folder of a run: `OUT`, `OUT.json`, `OUT.records.jsonl`, `OUT.work/`.

    Args:
        output (`Path`): CSV, TSV, JSON lines or Parquet file to write, by its suffix.
        description (mapping): The sidecar's content; its `COMPARED` parts must be the same for a run to be continued.
        verify (`bool`): Compare the contents of clips that were scored earlier even where size and times are the same.

    Raises:
        ValueError: The output is of another kind.
    """

    def __init__(self, output: str | Path, description: Mapping[str, Any], verify: bool = False):
        self.output, self.description = Path(output), dict(description)
        check_table_suffix(output)
        self.sidecar = self.output.with_name(f"{self.output.name}.json")
        self.records = self.output.with_name(f"{self.output.name}.records.jsonl")
        self.work = self.output.with_name(f"{self.output.name}.work")
        self._done = self.output.with_name(f"{self.output.name}.work.done")
        self.verify = verify
        self._looked_at: dict[str, bool] = {}  # whether a file is unchanged, however many rows name it

    def is_finished(self) -> bool:
        """
        Returns True if the output is complete and as it was written, has the same input and settings, and no clip has
        changed since.
        """
        shutil.rmtree(self._done, ignore_errors=True)  # left by a run that was killed in its last moment
        if self.work.exists() or not all(file.is_file() for file in (self.output, self.sidecar, self.records)):
            return False
        written = _sound(read_json(self.sidecar), self.sidecar, output_sha256=str, rows=dict)
        if written["output_sha256"] != file_digest(self.output) or _differences(written, self.description):
            return False
        if written["rows"].get("error"):
            return False
        stale = [self._is_stale(record) for record in _lines(self.records)]
        return len(stale) == self.description["table"]["rows"] and not any(stale)

    def _is_stale(self, record: Record) -> bool:
        """Returns True if the clip of a score has changed since."""
        state: ClipState | None = record.get("clip")
        if not state:
            return False
        key = f"{state['sha256']} {state['path']}"
        if key not in self._looked_at:
            self._looked_at[key] = is_unchanged(state, self.verify)
        return not self._looked_at[key]

    def counts(self) -> dict[str, int]:
        """Returns the number of rows of each status in a complete output."""
        return read_json(self.sidecar)["rows"]

    def open(self, restart: bool = False) -> None:
        """
        Make the work folder, and gather in it what earlier runs have left.

        Raises:
            ValueError: The output exists and is not from this command, or is of another input or other settings.
        """
        if not restart:
            self._check()
        if self.work.exists() and (restart or not (self.work / SETTINGS).is_file()):
            self._remove_work()  # an earlier output stays until it is replaced
        if restart or not self.sidecar.is_file():
            self.records.unlink(missing_ok=True)  # nothing says which settings gave them
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(self.work / SETTINGS, self.description)
        self._gather()

    def _gather(self) -> None:
        """Put all earlier records into one file; those of changed clips become failures, which are tried again."""
        parts, earlier = sorted(self.work.glob("process-*.jsonl")), self.work / EARLIER
        stale: set[str] = set()
        with whole_file(earlier) as partial, open(partial, "w", encoding="utf-8") as file:
            for _, records in read_records(path for path in (self.records, earlier, *parts) if path.exists()):
                for record in records.values():
                    if self._is_stale(record):
                        stale.add(record["clip"]["path"])
                        record |= failure("the sound has changed since it was scored")
                    file.write(as_line(record))
        for part in parts:
            part.unlink()
        self._looked_at.clear()
        if stale:
            logger.warning(
                f"{len(stale)} sounds have changed since they were scored ({min(stale)}); scoring them again."
            )

    def _check(self) -> None:
        for file in (self.work / SETTINGS, self.sidecar):
            if file.is_file():
                begun = _sound(read_json(file), file, scorer=dict)
                if begun["scorer"].keys() != self.description["scorer"].keys():
                    raise ValueError(
                        f"{self.output}: was begun by another version of this package, which recorded other settings "
                        "of a score, so that it cannot be continued; choose another output, or begin anew with "
                        "--restart."
                    )
                changed = _differences(begun, self.description)
                if changed:
                    raise ValueError(
                        f"{self.output}: was begun with another {', '.join(changed)}; choose another output, or begin "
                        "anew with --restart."
                    )
                return
        if self.output.exists():
            raise ValueError(
                f"{self.output}: exists, and not from this command; choose another output, or replace it with "
                "--restart."
            )

    def earlier(self) -> RecordReader:
        """Returns a reader of earlier runs' results."""
        return RecordReader([self.work / EARLIER])

    def append_to(self, process_index: int) -> TextIO:
        """Opens the file to which a process adds its results."""
        return open(self.work / f"process-{process_index:05d}.jsonl", "a", encoding="utf-8")

    def finish(
        self,
        blocks: Iterable[list[tuple[int, int, dict[str, Any]]]],
        columns: list[str],
        to_row: Callable[[dict[str, Any], Record], dict[str, Any]],
    ) -> None:
        """
        Write output, records and sidecar, and remove the work folder.

        Args:
            blocks (iterable): Number, line and columns of all rows of the table, in its order, block by block.
            columns (`list[str]`): The output's columns.
            to_row (callable): Makes a row of the output from one of the table and its result.
        """
        counts = dict.fromkeys(STATUSES, 0)
        records = RecordReader([self.work / EARLIER, *sorted(self.work.glob("process-*.jsonl"))])
        with (
            whole_file(self.records) as partial,
            open(partial, "w", encoding="utf-8") as kept,
            table_writer(self.output, columns) as write,
        ):
            for number, block in enumerate(blocks):
                results = records.block(number)
                for row_number, _, row in block:
                    result = results[row_number]
                    counts[result["status"].split(":")[0]] += 1
                    write(to_row(row, result))
                    kept.write(as_line(result))
        sidecar = {**self.description, "rows": counts, "output_sha256": file_digest(self.output)}
        write_json(self.sidecar, sidecar)
        self._remove_work()

    def _remove_work(self) -> None:
        """Remove the work folder, renamed first: one that is partly gone would be taken for a run to continue."""
        shutil.rmtree(self._done, ignore_errors=True)
        self.work.rename(self._done)
        shutil.rmtree(self._done)


def as_line(record: Record) -> str:
    """Returns a record as a line of a work file."""
    return json.dumps(record) + "\n"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns the names of compared settings that differ."""
    names = []
    for group in COMPARED:
        old, new = before.get(group), json.loads(json.dumps(after[group]))
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{group}.{name}" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        elif old != new:
            names.append(group)
    return names
