"""Turns rows into records: groups and loads clips, runs the model, and gives each row a score or a reason for none."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers.utils import logging

from ..data.sources import Clip, PairSource
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .changes import clip_state, with_digest
from .files import Record, RecordReader, failure, is_failure

logger = logging.get_logger(__name__)

# What the loader and the processor raise for an input that cannot be scored, or that takes more memory than there is.
ROW_ERRORS = (ValueError, TypeError, OSError, MemoryError, RuntimeError)
# Most clips, and about the most rows, to load, score and write together: a killed run loses no more.
CLIPS_PER_GROUP = 32
ROWS_PER_GROUP = 256
# With windows, the whole of each sound is in memory, even if it lasts an hour.
WINDOWED_CLIPS_PER_GROUP = 8
# Larger batches gain nothing on a CPU. The bytes are an estimate for an accelerator and the published size in fp32;
# most of them are the encoder's attention bias.
CPU_BATCH_SIZE = 8
BYTES_PER_PAIR = 2**26
SCORE_DIGITS = 6
NOT_FINITE = "the score is not a finite number: try --dtype float32; if that is in use, the model's weights are broken"


class PassSize:
    """
    How many windows, and pairs, go through the model together.

    Args:
        device (`torch.device`): Asked for its free memory if no size is given.
        batch_size (`int`, *optional*): By default, as [`starting_batch_size`] says.
    """

    def __init__(self, device: torch.device, batch_size: int | None = None):
        self.is_fixed = batch_size is not None
        self.size = batch_size or starting_batch_size(device)

    def forward(self, align: AudioTextAlignmentPipeline, items: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Returns the scores of each preprocessed input, of shape `(num_windows, num_captions)`."""
        while True:
            try:
                return align.forward(items, pass_size=self.size) if items else []
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if self.is_fixed or self.size == 1:
                    raise ValueError(f"A batch of {self.size} does not fit into memory; try a smaller one.") from error
            self.size //= 2
            clear_device_cache(garbage_collection=True)
            logger.warning(f"Out of memory: going on with batches of {self.size}.")


def starting_batch_size(device: torch.device) -> int:
    """Returns a batch size that should fit into the free memory of a device."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    else:
        return CPU_BATCH_SIZE
    return max(1, min(CLIPS_PER_GROUP, free // BYTES_PER_PAIR))


class ClipLoader(Dataset):
    """
    Loads clips for a scorer in a `DataLoader`, whose worker processes get all but the model. It also computes
    spectrograms, unless an accelerator is there to do so.

    A clip comes back without its sound, but with the state of its file, its preprocessed input (`None` if nothing of it
    can be scored) and, for each of its rows, the reason why the row cannot be scored, or `None`.
    """

    def __init__(self, align: AudioTextAlignmentPipeline, call_arguments: dict[str, Any]):
        self.align, self.call_arguments = align.without_model(), call_arguments
        # Spectrograms of all windows of long sounds would fill the memory.
        self.makes_spectrograms = align.device.type == "cpu" and not any(call_arguments.values())

    def __getitem__(self, place: tuple[int, Clip]) -> tuple[int, Clip, dict[str, Any] | None, list[str | None]]:
        block, clip = place
        tokenized, reasons = zip(*(self._tokenize(row.caption) for row in clip.rows), strict=True)
        captions = [row.caption for row, reason in zip(clip.rows, reasons, strict=True) if reason is None]
        tokenized = [found for found in tokenized if found is not None]
        item, state = None, clip_state(clip.audio)
        try:
            if clip.audio is None:
                raise ValueError("The row names no sound.")
            if captions:
                pair = {"audio": clip.audio, "text": captions}
                item = self.align.preprocess(pair, tokenized=tokenized, **self.call_arguments)
                if self.makes_spectrograms:
                    item = self.align.with_spectrograms(item)
                state = with_digest(state, clip.audio)
        except ROW_ERRORS as error:
            item, reasons = None, [reason or one_line(error) for reason in reasons]
        return block, replace(clip, audio=None, state=state), item, list(reasons)

    def _tokenize(self, caption: Any) -> tuple[tuple[Any, list[str]] | None, str | None]:
        """Returns what the scorer makes of a caption, or `None` and the reason why it cannot be scored."""
        try:
            return self.align.tokenize(caption), None
        except ROW_ERRORS as error:
            return None, one_line(error)


def one_line(error: Exception) -> str:
    """Returns an error's message in one line, as a cell of a table can hold it."""
    return " ".join(str(error).split()) or type(error).__name__


def status_of(notes: list[str]) -> str:
    """Returns `cut` if part of the sound or caption was not used; else `windowed`, `padded` or `ok`."""
    if any("cut:" in note for note in notes):
        return "cut"
    return next((word for word in ("windowed", "padded") if any(note.startswith(word) for note in notes)), "ok")


def success(result: dict[str, Any]) -> Record:
    """Returns the record of a pair from the pipeline's result for it."""
    if not math.isfinite(result["score"]):
        return failure(NOT_FINITE)
    notes = result.get("notes", [])
    windows = [{**window, "score": round(window["score"], SCORE_DIGITS)} for window in result.get("windows", [])]
    record = {"score": round(result["score"], SCORE_DIGITS), "status": status_of(notes), "notes": "; ".join(notes)}
    return {**record, "windows": windows} if windows else record


def check_finite(results: Iterable[Mapping[str, Any]], audio: str) -> None:
    """
    Refuse scores that are not finite.

    Args:
        results (iterable of `dict`): The pipeline's results for the captions of a sound.
        audio (`str`): The sound's name.

    Raises:
        ValueError: A score is NaN or infinite.
    """
    for result in results:
        if not math.isfinite(result["score"]):
            raise ValueError(f"{audio}: {NOT_FINITE}.")


def groups_of(clips: list[Clip], max_clips: int = CLIPS_PER_GROUP) -> Iterator[list[Clip]]:
    """Yields clips to be scored together. They depend on the table alone, and so do, to the last bit, their scores."""
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if len(group) == max_clips or sum(len(member.rows) for member in group) >= ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def failed_only(group: list[Clip], failed: set[int]) -> list[Clip]:
    """Returns the clips of a group with only those rows that failed."""
    kept = [Clip(clip.audio, [row for row in clip.rows if row.number in failed]) for clip in group]
    return [clip for clip in kept if clip.rows]


def pending_groups(
    pairs: PairSource, earlier: RecordReader, max_clips: int, state: PartialState, bar: tqdm
) -> Iterator[list[tuple[int, Clip]]]:
    """
    Yields this process's share of what is still to be scored, with the numbers of the blocks: whole groups if any of
    their rows has no result; of the other groups, the rows that failed.
    """
    count = 0
    for number, block in enumerate(pairs.blocks()):
        known = earlier.block(number)
        failed = {row for row, record in known.items() if is_failure(record)}
        for group in groups_of(pairs.clips(block), max_clips):
            num_rows = sum(len(clip.rows) for clip in group)
            if all(row.number in known for clip in group for row in clip.rows):
                group = failed_only(group, failed)
            mine = bool(group) and count % state.num_processes == state.process_index
            count += bool(group)
            bar.update(num_rows - sum(len(clip.rows) for clip in group) if mine else num_rows)
            if mine:
                yield [(number, clip) for clip in group]


def group_records(
    align: AudioTextAlignmentPipeline,
    loaded: list[tuple[int, Clip, dict[str, Any] | None, list[str | None]]],
    pass_size: PassSize,
    windows: bool,
) -> Iterator[tuple[int, Record]]:
    """Yields `(line, record)` for every row of the clips loaded by [`ClipLoader`]."""
    scores = iter(pass_size.forward(align, [item for _, _, item, _ in loaded if item is not None]))
    for block, clip, item, reasons in loaded:
        results = iter(())
        if item is not None:
            results = iter(align.postprocess({**item, "scores": next(scores)}, return_windows=windows))
        for row, reason in zip(clip.rows, reasons, strict=True):
            record = {**success(next(results)), "clip": clip.state} if reason is None else failure(reason)
            yield row.line, {"block": block, "row": row.number, **record}
