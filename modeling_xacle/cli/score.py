"""`xacle score`: one pair, or a table."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import DEFAULT_MODEL, data, scoring
from .options import (
    LARGEST_BATCH,
    AsJson,
    Device,
    Dtype,
    MapScore,
    Model,
    Precision,
    Processor,
    Question,
    Revision,
    check_device,
    print_json,
)

if TYPE_CHECKING:
    from ..pipeline_xacle import AudioTextAlignmentPipeline

SOME_ROWS_FAILED = 3
MOST_WORKERS = 16
SHORTEST_HOP = 0.025  # seconds, as in the pipeline


def parse_batch_size(value: str) -> str:
    """Returns the value if it is `auto` or a whole number from 1 to `LARGEST_BATCH`."""
    if value != "auto" and not (value.isdecimal() and len(value) < 9 and 1 <= int(value) <= LARGEST_BATCH):
        raise typer.BadParameter(f"--batch-size {value}: give a whole number from 1 to {LARGEST_BATCH}, or auto.")
    return value


def as_number(batch_size: str) -> int | None:
    """Returns the batch size as a number; `None` for `auto`."""
    return None if batch_size == "auto" else int(batch_size)


Pairs = Annotated[
    str | None,
    typer.Argument(help="CSV, TSV, JSONL or Parquet file; dataset folder or Hub id; or - for a CSV on stdin."),
]
Audio = Annotated[Path | None, typer.Option(help="One sound, instead of a table.")]
Text = Annotated[list[str] | None, typer.Option(help="Its caption; may be repeated.")]
AudioColumn = Annotated[
    str | None, typer.Option(help="Column of the sounds. Default: wav_file_name, audio, file_name or path.")
]
TextColumn = Annotated[str | None, typer.Option(help="Column of the captions. Default: text or caption.")]
AudioDir = Annotated[Path | None, typer.Option(help="Folder of the table's sounds. Default: the table's own.")]
Split = Annotated[str | None, typer.Option(help="Split of a dataset that has several.")]
Out = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write for a table: CSV, TSV, JSONL, Parquet; OUT.json tells how."),
]
BatchSize = Annotated[
    str,
    typer.Option(callback=parse_batch_size, help="Pairs at a time; auto: what the device holds."),
]
Workers = Annotated[int, typer.Option(min=0, max=MOST_WORKERS, help="Processes that load and resample sounds.")]
WindowSeconds = Annotated[
    float | None, typer.Option(min=SHORTEST_HOP, help="Score all of a long sound, in windows of this length.")
]
HopSeconds = Annotated[
    float | None, typer.Option(min=SHORTEST_HOP, help="Distance between windows. Default: the window.")
]
Windows = Annotated[bool, typer.Option("--windows", help="Also give the score of each window (table, or --json).")]
Signature = Annotated[bool, typer.Option("--signature", help="Add a column that tells model and settings.")]
Xacle = Annotated[bool, typer.Option("--xacle", help="Write the challenge's wav_file_name,pred_score alone.")]
Prefix = Annotated[str, typer.Option(help="Put before the names of the columns that are added.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be scored.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare contents, not only sizes and times, of clips scored earlier.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget earlier runs, and replace what is at the output.")]


def score(
    pairs: Pairs = None,
    audio: Audio = None,
    text: Text = None,
    audio_column: AudioColumn = None,
    text_column: TextColumn = None,
    audio_dir: AudioDir = None,
    split: Split = None,
    output: Out = None,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    processor: Processor = None,
    map_score: MapScore = False,
    question: Question = None,
    device: Device = "auto",
    dtype: Precision = Dtype.float32,
    batch_size: BatchSize = "auto",
    workers: Workers = 0,
    window_seconds: WindowSeconds = None,
    hop_seconds: HopSeconds = None,
    windows: Windows = False,
    signature: Signature = False,
    xacle: Xacle = False,
    prefix: Prefix = "",
    strict: Strict = False,
    verify: Verify = False,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """
    Score one pair (--audio, --text), or the pairs of a table (PAIRS, --output).

    A table keeps its rows, their order and columns, and gets `score`, `status`
    (ok, padded, cut, windowed, error: reason) and `notes`. The same command
    continues a run that was killed, tries rows with errors again, and scores
    anew what has changed.

    Exit codes: 0 all rows have a score; 3 some have none; 1 unusable input;
    2 mistake in the command.
    """
    one_pair, one_table = audio is not None and bool(text), pairs is not None and output is not None
    if one_pair == one_table or (one_pair and (pairs or output)) or (one_table and (audio or text)):
        raise typer.BadParameter("give either --audio and --text, or a table and --output")
    if windows and one_pair and not as_json:
        raise typer.BadParameter("--windows goes with a table, or with --audio, --text and --json")
    check_device(device)
    scorer = {"dtype": dtype.value, "revision": revision, "processor": processor, "map_score": map_score}
    scorer |= {"questions": question}
    spans = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
    if one_pair:
        print_pairs(scoring.load_scorer(model, device, **scorer), audio, text, as_json, return_windows=windows, **spans)
        return
    flags = {"windows": windows, "signature": signature, "xacle": xacle, "strict": strict}
    flags |= {"verify": verify, "restart": restart}
    options = scoring.TableOptions(as_number(batch_size), workers, prefix=prefix, **spans, **flags)
    columns = {"audio_column": audio_column, "text_column": text_column, "audio_dir": audio_dir, "split": split}
    run_table(pairs, columns, output, options, model, device, scorer, as_json)


def run_table(
    pairs: str,
    columns: dict[str, Any],
    output: Path,
    options: "scoring.TableOptions",
    model: str,
    device: str,
    scorer: dict[str, Any],
    as_json: bool,
) -> None:
    """Score a table with all processes that were launched, and report; the exit code tells whether rows failed."""
    if pairs == data.STDIN and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter("several processes cannot share standard input; give a file")
    source = data.PairSource(pairs, **columns)
    state = scoring.join_processes(device)
    align = scoring.load_scorer(model, state.device if device == "auto" else device, **scorer)
    report = scoring.score_table(align, source, output, options, state)
    if state.is_main_process:
        print_report(report, as_json)
    if report.counts["error"]:
        raise typer.Exit(SOME_ROWS_FAILED)


def print_report(report: "scoring.ScoringReport", as_json: bool) -> None:
    """Print one line on stdout and, on stderr, what to do about rows without a score."""
    failed = report.counts["error"]
    if failed:
        typer.echo(f"{failed} rows have no score, see their status; the same command tries them again.", err=True)
    words = f"{report.rows - failed} of {report.rows} pairs scored" if failed else f"{report.rows} pairs scored"
    if report.was_complete:
        words = "already complete, nothing scored"
    print_json(report.as_dict(), indent=None) if as_json else typer.echo(f"{words}: {report.output}")


def print_pairs(
    align: "AudioTextAlignmentPipeline", audio: Path, texts: list[str], as_json: bool, **call_arguments: Any
) -> None:
    """Print one sound's score for one caption, or a line for each of several."""
    results = align({"audio": str(audio), "text": texts}, **call_arguments)
    scoring.check_finite(results, str(audio))
    if as_json:
        print_json(results if len(texts) > 1 else results[0])
        return
    for result in results:
        typer.echo(f"{result['score']:.2f}" if len(texts) == 1 else f"{result['score']:.2f}\t{result['text']}")
        for note in result.get("notes", []):
            typer.echo(note, err=True)
