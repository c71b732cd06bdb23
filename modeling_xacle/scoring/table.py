"""Scoring: any model as one kind of object, and whole tables of pairs with it."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, pipeline

from .. import DEFAULT_MODEL, __version__
from ..checkpoints.fingerprints import (
    digest_of,
    front_end_code,
    processor_settings,
    weights_fingerprint,
    without_bookkeeping,
)
from ..checkpoints.provenance import commit_of
from ..data.sources import PairSource
from ..judges.clap import ClapTeacher
from ..judges.clap_pipeline import ZeroShotAlignmentPipeline
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .files import XACLE_COLUMNS, Record, ScoringFiles, as_line
from .groups import (
    CLIPS_PER_GROUP,
    WINDOWED_CLIPS_PER_GROUP,
    ClipLoader,
    PassSize,
    group_records,
    is_failure,
    pending_groups,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST_WAIT = timedelta(days=7)  # of a process whose share is scored for the others


@dataclass(frozen=True)
class TableOptions:
    """
    How to score a table.

    Fields:
        batch_size (`int`, *optional*): Windows, and pairs, in one pass of the model; by default what the device holds,
            halved when it turns out to hold less.
        workers (`int`): Processes that load and resample sounds; 0 is none but this one.
        window_seconds (`float`, *optional*), hop_seconds (`float`, *optional*): As of the pipeline's call.
        windows (`bool`): Add a column with the score of each window.
        signature (`bool`): Add a column that tells the model and its settings.
        xacle (`bool`): Write the challenge's two columns alone.
        prefix (`str`): Put before the names of the columns that are added.
        strict (`bool`): Stop at the first row that cannot be scored.
        restart (`bool`): Forget earlier runs, and replace what is at the output.
    """

    batch_size: int | None = None
    workers: int = 0
    window_seconds: float | None = None
    hop_seconds: float | None = None
    windows: bool = False
    signature: bool = False
    xacle: bool = False
    prefix: str = ""
    strict: bool = False
    restart: bool = False

    @property
    def call_arguments(self) -> dict[str, Any]:
        """Those of `preprocess`."""
        return {"window_seconds": self.window_seconds, "hop_seconds": self.hop_seconds}

    @property
    def clips_per_group(self) -> int:
        """Clips that are loaded and scored together."""
        return CLIPS_PER_GROUP if self.window_seconds is self.hop_seconds is None else WINDOWED_CLIPS_PER_GROUP

    @property
    def added(self) -> dict[str, str]:
        """Names of the added columns, by what they hold."""
        names = ["score", "status", "notes", *["windows"] * self.windows, *["signature"] * self.signature]
        return {name: self.prefix + name for name in names}


@dataclass(frozen=True)
class ScoringReport:
    """
    What became of a table.

    Fields:
        rows (`int`): Of the table, and of the output.
        scored (`int`): Of them, those that this run gave a score; the others had one, or have none.
        counts (`dict[str, int]`): Rows by status: `ok`, `padded`, `cut`, `windowed`, `error`.
        output (`str`), sidecar (`str`): The files.
        signature (`str`): Tells the model and its settings.
    """

    rows: int
    scored: int
    counts: dict[str, int]
    output: str
    sidecar: str
    signature: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def join_processes(device: str = "auto") -> PartialState:
    """
    The processes that share the work, one if no launcher started more, and the device of this one.

    Raises:
        ValueError: Processes were started that would each work alone.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were started, but each would work alone; launch with a file of accelerate_configs/."
        )
    return state


def load_scorer(
    model: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    processor: str | Path | None = None,
    map_cosine: bool = False,
) -> AudioTextAlignmentPipeline:
    """
    A scorer, called as the pipeline is, of whatever model.

    Args:
        model (`str` or `Path`): Folder or Hub id of a xacle model, or of any `transformers.ClapModel`.
        device (`str` or `torch.device`): By default an accelerator (cuda, mps) if there is one, else the CPU.
        dtype (`str`): `"float32"`, `"bfloat16"` or `"float16"`.
        revision (`str`, *optional*): Of the model on the Hub.
        processor (`str` or `Path`, *optional*): Of a CLAP model that comes without one.
        map_cosine (`bool`): Map a CLAP model's cosine to 0-10.

    Returns:
        A pipeline that also knows the `commit` of a model on the Hub.

    Raises:
        ValueError: Another kind of model, an incomplete one, or an option that it does not take.
        OSError: There is no such model.
    """
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device, compute_dtype = torch.device(device), DTYPES[dtype]
    kind = AutoConfig.from_pretrained(model, revision=revision).model_type
    commit = commit_of(model, revision)
    if kind == "clap":
        teacher = ClapTeacher.from_pretrained(model, processor, device, revision)
        align = ZeroShotAlignmentPipeline(teacher, map_cosine, compute_dtype, device=device)
        align.commit = commit
        return align
    if kind != "xacle":
        raise ValueError(f"{model}: a model of type {kind}; xacle and clap models can score.")
    if map_cosine or processor:
        raise ValueError(f"{model}: --map-cosine and --processor are for CLAP models.")
    align = pipeline("audio-text-alignment", model=str(model), revision=revision, dtype=compute_dtype, device=device)
    # Pipeline leaves the model where it is if processes share the work.
    align.model.to(device)
    align.device, align.commit = device, commit
    return align


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
        ValueError: With `strict`, a row cannot be scored; the results of its group are written before.
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


def scorer_settings(align: AudioTextAlignmentPipeline, options: TableOptions) -> dict[str, Any]:
    """All that a score depends on, besides the clip and the caption, as JSON has it."""
    settings = processor_settings(align.processor)
    zero_shot = isinstance(align, ZeroShotAlignmentPipeline)
    return {
        "weights": f"sha256 {weights_fingerprint(align.model)}",
        "config": f"sha256 {digest_of(without_bookkeeping(align.model.config.to_dict()))}",
        "version": __version__,
        "dtype": str(align.compute_dtype if zero_shot else align.model.dtype).removeprefix("torch."),
        "scale": "cosine" if zero_shot and not align.map_cosine else "0-10",
        **options.call_arguments,
        "max_text_tokens": align.max_text_tokens if zero_shot else settings.pop("max_text_tokens"),
        "front_end": settings.pop("feature_extractor"),
        "processor": settings,
        **front_end_code(),
    }


def scorer_signature(settings: dict[str, Any]) -> str:
    """What [`scorer_settings`] gives, in one short line."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"modeling-xacle {__version__} {digest}"


def describe(align: AudioTextAlignmentPipeline, pairs: PairSource, options: TableOptions) -> dict[str, Any]:
    """What the sidecar says, besides the counts: of the scorer, of the table, and of the output's columns."""
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
    """Refuse what would fail for every row, or lose something."""
    repeated = [name for name, count in Counter([*pairs.columns, *options.added.values()]).items() if count > 1]
    if repeated and not options.xacle:
        raise ValueError(
            f"{pairs.name}: already has the column {', '.join(repeated)}, which the result would overwrite; rename it, "
            "or name the result otherwise with --prefix."
        )
    if pairs.dataset is None and Path(output).resolve() == pairs.path.resolve():
        raise ValueError(f"{output}: is the input table itself; choose another output.")
    if options.xacle and Path(output).suffix.lower() != ".csv":
        raise ValueError(f"{output}: the challenge's format is CSV; name a file that ends in .csv.")
    rate = align.processor.feature_extractor.sampling_rate
    silence = {"array": torch.zeros(rate), "sampling_rate": rate}
    align.preprocess({"audio": silence, "text": "silence"}, **options.call_arguments)


def score_table(
    align: AudioTextAlignmentPipeline,
    pairs: PairSource,
    output: str | Path,
    options: TableOptions | None = None,
    state: PartialState | None = None,
) -> ScoringReport:
    """
    Score the pairs of a table. Each clip is encoded once for all its rows within `LOOK_AHEAD_ROWS`, wherever they are.

    Results are written as they come, to `OUTPUT.work/`; at the end the table with its results goes to the output, in
    the order of the input, and what it was made with to `OUTPUT.json`. Started again after it was killed, the run
    continues and ends in the same bytes; rows that failed are tried again.

    Args:
        align (`AudioTextAlignmentPipeline`): As [`load_scorer`] gives it.
        pairs (`PairSource`): The table.
        output (`str` or `Path`): CSV, TSV or JSONL file.
        options (`TableOptions`, *optional*): How.
        state (`PartialState`, *optional*): The processes that share the work, on one file system.

    Raises:
        ValueError: The output belongs to another input or other settings; a column would be overwritten; with
            `strict`, a row cannot be scored.
    """
    options, state = options or TableOptions(), state or join_processes(align.device.type)
    check_request(align, pairs, output, options)
    description = describe(align, pairs, options)
    files = ScoringFiles(output, description)
    finished = not options.restart and files.is_finished()
    state.wait_for_everyone()
    scored = 0
    if not finished:
        if state.is_main_process:
            files.open(options.restart)
        state.wait_for_everyone()
        scored = score_pending(align, pairs, files, options, state)
        state.wait_for_everyone()
        if state.is_main_process:
            files.finish(pairs.blocks(), description["columns"], lambda *row: output_row(*row, pairs, options, files))
        state.wait_for_everyone()
    counts = files.counts()
    return ScoringReport(
        pairs.num_rows, scored, counts, str(output), str(files.sidecar), files.description["signature"]
    )


def output_row(
    row: dict[str, Any], record: Record, pairs: PairSource, options: TableOptions, files: ScoringFiles
) -> dict[str, Any]:
    """A row of the output."""
    if options.xacle:
        audio = row[pairs.audio_column]
        name = Path(audio.get("path") or "").name if isinstance(audio, dict) else audio
        return dict(zip(XACLE_COLUMNS, (name, record["score"]), strict=True))
    values = {**record, "windows": record.get("windows"), "signature": files.description["signature"]}
    return {**row, **{column: values[name] for name, column in options.added.items()}}
