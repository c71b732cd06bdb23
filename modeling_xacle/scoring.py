"""Scoring a table of pairs: rows in, the same rows with their scores out, in order."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .data import find_column, read_table
from .pipeline_xacle import AudioTextAlignmentPipeline

# The first of these that a table has is taken: the challenge's spellings, in its files and in its READMEs, then others.
AUDIO_COLUMNS = ("wav_file_name", "wave_file_name", "audio", "path")
TEXT_COLUMNS = ("text", "caption")
RESULT_COLUMNS = ("score", "notes")
# What the loader and the processor raise for an input that cannot be scored.
ROW_ERRORS = (ValueError, TypeError, OSError)


def locate_audio(name: str, table: str | Path, audio_dir: str | Path | None) -> str:
    """
    Path of a clip: in `audio_dir` whatever its name, a leading "/" of the challenge's files included; else beside the
    table.
    """
    if audio_dir is not None:
        return str(Path(audio_dir) / name.lstrip("/"))
    return str(Path(table).parent / name)


def score_items(
    align: AudioTextAlignmentPipeline, items: list[dict[str, str]], **call_arguments: Any
) -> Iterator[dict[str, Any]]:
    """Results of a batch; if an item cannot be scored, those before it come first and the error in its own turn."""
    try:
        yield from align(items, **call_arguments)
    except ROW_ERRORS:
        for item in items:
            yield align(item, **call_arguments)


def score_table(
    align: AudioTextAlignmentPipeline,
    table: str | Path,
    output: str | Path,
    audio_dir: str | Path | None = None,
    batch_size: int = 8,
    **call_arguments: Any,
) -> int:
    """
    Score the pairs of a CSV file. Rows are written as they are done; the first row that cannot be scored stops the run.

    Args:
        align (`AudioTextAlignmentPipeline`): The scorer.
        table (`str`): CSV or JSONL file with an audio column (`AUDIO_COLUMNS`) and a text column (`TEXT_COLUMNS`).
        output (`str`): CSV file to write: the input's columns, `score` and `notes`.
        audio_dir (`str`, *optional*): Folder of the clips, by default the table's own.
        batch_size (`int`): Rows at a time.
        call_arguments: Passed to the pipeline's call: `window_seconds`, `hop_seconds`.

    Returns:
        The number of rows scored.

    Raises:
        ValueError: A column is missing or would be overwritten, or a row cannot be scored; rows before it are written.
    """
    columns, rows = read_table(table)
    audio_column, text_column = (find_column(columns, names, table) for names in (AUDIO_COLUMNS, TEXT_COLUMNS))
    taken = [column for column in RESULT_COLUMNS if column in columns]
    if taken:
        raise ValueError(
            f"{table}: already has the column {', '.join(taken)}, which the result would overwrite; rename it."
        )
    if Path(output).resolve() == Path(table).resolve():
        raise ValueError(f"{output}: is the input table itself; choose another output.")
    done = 0
    with open(output, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *RESULT_COLUMNS])
        writer.writeheader()
        while batch := list(islice(rows, batch_size)):
            items = [
                {"audio": locate_audio(str(row[audio_column]), table, audio_dir), "text": row[text_column]}
                for _, row in batch
            ]
            results = score_items(align, items, batch_size=batch_size, **call_arguments)
            for line, row in batch:
                try:
                    result = next(results)
                except ROW_ERRORS as error:
                    raise ValueError(f"{table}, line {line}: {error}") from error
                writer.writerow({**row, "score": result["score"], "notes": "; ".join(result.get("notes", []))})
                done += 1
            file.flush()
    return done
