"""Scores whole tables of pairs."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from ..data.columns import XACLE_COLUMNS
from ..data.files import check_outputs, held
from ..data.sources import PairSource
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .files import Record, ScoringFiles, as_line, is_failure
from .groups import ClipLoader, PassSize, group_records, pending_groups
from .options import TableOptions
from .scorer import join_processes, scorer_settings, scorer_signature

logger = logging.get_logger(__name__)

RATED_PREFIX = "pred_"


@dataclass(frozen=True)
class ScoringReport:
    """
    The result of scoring a table.

    Fields:
        rows (`int`): Rows of the table, and of the output.
        scored (`int`): Rows that this run gave a score; the others had one, or have none.
        was_complete (`bool`): True if the output was there and nothing was left to do.
        counts (`dict[str, int]`): Rows by status: `ok`, `padded`, `cut`, `windowed`, `error`.
        output (`str`), sidecar (`str`): The files.
        signature (`str`): Identifies the model and its settings.
    """

    rows: int
    scored: int
    was_complete: bool
    counts: dict[str, int]
    output: str
    sidecar: str
    signature: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return asdict(self)


def score_pending(
    align: AudioTextAlignmentPipeline,
    pairs: PairSource,
    files: ScoringFiles,
    options: TableOptions,
    state: PartialState,
) -> int:
    """
    Score this process's share of what is still to be scored, and write each group's results as they come.

    Returns:
        The number of rows that got a score.

    Raises:
        ValueError: With `strict`, a row cannot be scored; the results of its group are written first.
    """
    pass_size = PassSize(align.device, options.batch_size)
    scored = 0
    bar = tqdm(total=pairs.num_rows, desc="scoring", unit="pair", disable=None if state.is_main_process else True)
    with bar, files.append_to(state.process_index) as file:
        loader = DataLoader(
            ClipLoader(align, options.call_arguments),
            batch_sampler=pending_groups(pairs, files.earlier(), options.clips_per_group, state, bar),
            num_workers=options.workers,
            prefetch_factor=1 if options.workers else None,
            collate_fn=list,
            pin_memory=align.device.type == "cuda",
        )
        for loaded in loader:
            records = list(group_records(align, loaded, pass_size, options.windows))
            file.write("".join(as_line(record) for _, record in records))
            file.flush()
            bar.update(len(records))
            failures = [(line, record["status"]) for line, record in records if is_failure(record)]
            scored += len(records) - len(failures)
            if options.strict and failures:
                line, status = min(failures)
                raise ValueError(f"{pairs.name}, line {line}: {status.removeprefix('error: ')}")
    return scored


def describe(align: AudioTextAlignmentPipeline, pairs: PairSource, options: TableOptions) -> dict[str, Any]:
    """Returns what the sidecar says, besides the counts, about the scorer, the table and the output's columns."""
    scorer = scorer_settings(align, options)
    return {
        "signature": scorer_signature(scorer),
        "model": str(align.model.name_or_path),
        "revision": getattr(align, "commit", None),
        "scorer": scorer,
        "input": pairs.name,
        "table": {
            "sha256": pairs.digest,
            "rows": pairs.num_rows,
            "audio_column": pairs.audio_column,
            "text_column": pairs.text_column,
            "audio_dir": str(pairs.folder),
        },
        "columns": list(XACLE_COLUMNS) if options.xacle else [*pairs.columns, *options.added.values()],
    }


def check_request(
    align: AudioTextAlignmentPipeline, pairs: PairSource, output: str | Path, options: TableOptions
) -> None:
    """Refuse a request that would fail for every row, or lose something."""
    repeated = [name for name, count in Counter([*pairs.columns, *options.added.values()]).items() if count > 1]
    if repeated and not options.xacle:
        raise ValueError(
            f"{pairs.name}: already has the column {', '.join(repeated)}, which the result would overwrite; rename it, "
            "or name the result otherwise with --prefix."
        )
    if options.xacle and Path(output).suffix.lower() != ".csv":
        raise ValueError(f"{output}: the challenge's format is CSV; name a file that ends in .csv.")
    rate = align.processor.feature_extractor.sampling_rate
    silence = {"array": torch.zeros(rate), "sampling_rate": rate}
    align.preprocess({"audio": silence, "text": "silence"}, **options.call_arguments)


def _beside_ratings(pairs: PairSource, options: TableOptions) -> TableOptions:
    """Names the model's score `pred_score` where `score` holds a dataset's ratings, unless a prefix is given."""
    if pairs.dataset is None or "score" not in pairs.columns or options.prefix or options.xacle:
        return options
    logger.warning(f"{pairs.name}: the column score holds ratings; the model's scores go to {RATED_PREFIX}score.")
    return replace(options, prefix=RATED_PREFIX)


def score_table(
    align: AudioTextAlignmentPipeline,
    pairs: PairSource,
    output: str | Path,
    options: TableOptions | None = None,
    state: PartialState | None = None,
) -> ScoringReport:
    """
    Score the pairs of a table. Each clip is encoded once for all its rows within `LOOK_AHEAD_ROWS`, wherever they are.

    Results are written to `OUTPUT.work/` as they come. At the end, the table with its results goes to the output, in
    the order of the input, what it was made with to `OUTPUT.json`, and what is known of each row and its clip to
    `OUTPUT.records.jsonl`. A run that was killed and is started again continues and ends in the same bytes.
    Rows that failed, and rows whose clip has changed, are scored again; if there are none, nothing is done.

    Args:
        align (`AudioTextAlignmentPipeline`): As [`load_scorer`] returns it.
        pairs (`PairSource`): The table.
        output (`str` or `Path`): CSV, TSV, JSON lines or Parquet file.
        options (`TableOptions`, *optional*): How to score it.
        state (`PartialState`, *optional*): The processes that share the work, on one file system.

    Raises:
        ValueError: The output belongs to another input or other settings, is an input itself, or is being written by
            another process; a column would be overwritten; with `strict`, a row cannot be scored.
    """
    options, state = _beside_ratings(pairs, options or TableOptions()), state or join_processes(align.device.type)
    check_request(align, pairs, output, options)
    description = describe(align, pairs, options)
    files = ScoringFiles(output, description, options.verify)
    check_outputs([files.output, files.sidecar, files.records], [pairs.path or pairs.name])
    with held(output, state.is_main_process):
        if state.is_main_process and (options.restart or not files.is_finished()):
            files.open(options.restart)
        state.wait_for_everyone()
        was_complete, scored = not files.work.exists(), 0
        if not was_complete:
            scored = score_pending(align, pairs, files, options, state)
            state.wait_for_everyone()
            if state.is_main_process:
                files.finish(
                    pairs.blocks(), description["columns"], lambda *row: output_row(*row, pairs, options, files)
                )
        state.wait_for_everyone()
    names = (str(output), str(files.sidecar), files.description["signature"])
    return ScoringReport(pairs.num_rows, scored, was_complete, files.counts(), *names)


def output_row(
    row: dict[str, Any], record: Record, pairs: PairSource, options: TableOptions, files: ScoringFiles
) -> dict[str, Any]:
    """Returns a row of the output."""
    if options.xacle:
        audio = row[pairs.audio_column]
        name = Path(audio.get("path") or "").name if isinstance(audio, dict) else audio
        return dict(zip(XACLE_COLUMNS, (name, record["score"]), strict=True))
    values = {**record, "windows": record.get("windows"), "signature": files.description["signature"]}
    return {**row, **{column: values[name] for name, column in options.added.items()}}
