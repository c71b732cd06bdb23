"""Scoring a table of pairs: rows in, the same rows with their scores out, in order."""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .pipeline_xacle import AudioTextAlignmentPipeline

# The first of these that a table has is taken: the challenge's spellings (FACTS of its files and of its READMEs), then
# common ones.
AUDIO_COLUMNS = ("wav_file_name", "wave_file_name", "audio", "path")
TEXT_COLUMNS = ("text", "caption")
RESULT_COLUMNS = ("score", "notes")


def choose_column(columns: list[str], candidates: tuple[str, ...], table: str | Path) -> str:
    """
    The first candidate that the table has.

    Raises:
        ValueError: It has none of them.
    """
    for candidate in candidates:
        if candidate in columns:
            return candidate
    raise ValueError(
        f"{table}: none of the columns {', '.join(candidates)} found; it has {', '.join(columns) or 'no columns'}."
    )


def read_rows(table: str | Path) -> tuple[list[str], Iterator[dict[str, str]]]:
    """
    Columns and rows of a UTF-8 CSV file with a header line, read as they are asked for.

    Raises:
        ValueError: The file is empty, not UTF-8, or a row has more or fewer fields than the header.
    """
    file = open(table, encoding="utf-8-sig", newline="")  # noqa: SIM115 - closed when the rows end
    reader = csv.DictReader(file, strict=True)

    def rows() -> Iterator[dict[str, str]]:
        with file:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{table}, line {reader.line_num}: the row does not have the {len(columns)} fields of the "
                        "header."
                    )
                yield row

    try:
        columns = list(reader.fieldnames or [])
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 ({error}); save it as UTF-8.") from error
    return columns, rows()


def locate_audio(name: str, table: str | Path, audio_dir: str | Path | None) -> str:
    """
    Path of a clip: in `audio_dir` whatever its name, a leading "/" of the challenge's files included; else beside the
    table.
    """
    if audio_dir is not None:
        return str(Path(audio_dir) / name.lstrip("/"))
    return str(Path(table).parent / name)


def score_table(
    align: AudioTextAlignmentPipeline,
    table: str | Path,
    output: str | Path,
    audio_dir: str | Path | None = None,
    **call_arguments: Any,
) -> int:
    """
    Score the pairs of a CSV file. Rows are written as they are done; the first row that cannot be scored stops the run.

    Args:
        align (`AudioTextAlignmentPipeline`): The scorer.
        table (`str`): CSV file with an audio column (`AUDIO_COLUMNS`) and a text column (`TEXT_COLUMNS`).
        output (`str`): CSV file to write: the input's columns, `score` and `notes`.
        audio_dir (`str`, *optional*): Folder of the clips, by default the table's own.
        call_arguments: Passed to the pipeline's call: `batch_size`, `window_seconds`, ...

    Returns:
        The number of rows scored.

    Raises:
        ValueError: A column is missing or would be overwritten, or a row cannot be scored; rows before it are written.
    """
    columns, rows = read_rows(table)
    audio_column, text_column = (choose_column(columns, names, table) for names in (AUDIO_COLUMNS, TEXT_COLUMNS))
    taken = [column for column in RESULT_COLUMNS if column in columns]
    if taken:
        raise ValueError(
            f"{table}: already has the column {', '.join(taken)}, which the result would overwrite; rename it."
        )
    if Path(output).resolve() == Path(table).resolve():
        raise ValueError(f"{output}: is the input table itself; choose another output.")
    waiting: deque[dict[str, str]] = deque()

    def pairs() -> Iterator[dict[str, str]]:
        for row in rows:
            waiting.append(row)
            yield {"audio": locate_audio(row[audio_column], table, audio_dir), "text": row[text_column]}

    done = 0
    with open(output, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *RESULT_COLUMNS])
        writer.writeheader()
        for result in align(pairs(), **call_arguments):
            writer.writerow(
                {**waiting.popleft(), "score": result["score"], "notes": "; ".join(result.get("notes", []))}
            )
            file.flush()
            done += 1
    return done
