"""Where pairs to score come from: a table of any kind, standard input, or a dataset; read as often as is needed."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from .columns import AUDIO_COLUMNS, TEXT_COLUMNS, find_column
from .files import file_digest
from .pairs import load_pairs
from .tables import FORMATS, read_table

STDIN = "-"
# Rows among which those of one clip are brought together. A waiting row takes some hundred bytes, the features of an
# encoded clip 300 kB at published size: rows that wait reach a thousand times as far as a cache of encoded clips would.
LOOK_AHEAD_ROWS = 2**16
LOOK_AHEAD_BYTES = 2**28  # of sounds that the table itself holds


class PairRow(NamedTuple):
    """
    A row to be scored.

    Fields:
        number (`int`): Counted from 0.
        line (`int`): In the table, for messages.
        caption: A string unless the table is broken.
    """

    number: int
    line: int
    caption: Any


@dataclass
class Clip:
    """
    A sound and the rows that name it.

    Fields:
        audio: What `load_waveform` takes, or `None` where the row names no sound.
        rows (`list[PairRow]`): At least one.
        state (`dict`, *optional*): What tells its file from other versions of it, once it was read.
    """

    audio: Any
    rows: list[PairRow] = field(default_factory=list)
    state: dict[str, Any] | None = None


class PairSource:
    """
    Pairs of a sound and a caption, with all the other columns of their rows.

    Args:
        source (`str` or `Path`): A CSV, TSV, JSONL or Parquet file; `-` for a CSV on standard input, which is copied to
            a temporary file; or a dataset folder or Hub id, as [`load_pairs`] takes it.
        audio_column (`str`, *optional*), text_column (`str`, *optional*): By default the first of `AUDIO_COLUMNS` and
            `TEXT_COLUMNS` that is there.
        audio_dir (`str` or `Path`, *optional*): Folder of the clips, by default the table's own, or for standard input
            the working directory.
        split (`str`, *optional*): Of a dataset with more than one.

    Attributes:
        columns (`list[str]`): Of the table.
        num_rows (`int`): All were read once to count them.
        digest (`str`): SHA-256 of the file, or of a dataset's rows.

    Raises:
        FileNotFoundError: There is no such table, dataset or folder of sounds.
        ValueError: The table is broken, a column is missing, or a split has to be named.
    """

    def __init__(
        self,
        source: str | Path,
        audio_column: str | None = None,
        text_column: str | None = None,
        audio_dir: str | Path | None = None,
        split: str | None = None,
    ):
        self.name = "standard input" if str(source) == STDIN else str(source)
        if audio_dir is not None and not Path(audio_dir).is_dir():
            raise FileNotFoundError(f"{audio_dir}: no such folder of sounds.")
        self.dataset: Dataset | None = None
        self.path: Path | None = None
        if str(source) == STDIN or Path(source).is_file() or Path(source).suffix.lower() in FORMATS:
            if split is not None:
                raise ValueError(f"{self.name}: is one table; a split is chosen of a dataset, so leave out --split.")
            self.path = _copy_of_stdin(self) if str(source) == STDIN else Path(source)
            self.folder = Path(audio_dir or (Path() if str(source) == STDIN else self.path.parent)).absolute()
            self.columns, _ = read_table(self.path, self.name)
        else:
            self.dataset = _one_split(source, split)
            self.folder = Path(audio_dir or Path()).absolute()
            self.columns = self.dataset.column_names
        audio, text = [audio_column] if audio_column else AUDIO_COLUMNS, [text_column] if text_column else TEXT_COLUMNS
        self.audio_column = find_column(self.columns, audio, self.name)
        self.text_column = find_column(self.columns, text, self.name)
        self.strips_slash = audio_dir is not None
        self.num_rows, self.digest = self._count_and_digest()

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line numbers and rows, from the first, read as they are asked for."""
        if self.dataset is not None:
            return enumerate(iter(self.dataset), 1)
        return read_table(self.path, self.name)[1]

    def _count_and_digest(self) -> tuple[int, str]:
        """All rows are read, so that a broken line is found before hours of scoring."""
        if self.dataset is None:
            return sum(1 for _ in self.rows()), file_digest(self.path)
        digest = hashlib.sha256()
        for _, row in self.rows():
            digest.update(json.dumps(row, sort_keys=True, default=_bytes_digest).encode())
        return len(self.dataset), digest.hexdigest()

    def audio(self, row: Mapping[str, Any]) -> Any:
        """The sound of a row: bytes that the table holds, or a path; `None` if the row names none."""
        audio = row[self.audio_column]
        if isinstance(audio, Mapping) and audio.get("bytes") is not None:
            return {"bytes": audio["bytes"], "path": audio.get("path")}
        name = audio.get("path") if isinstance(audio, Mapping) else audio
        if name is None or not str(name).strip():
            return None
        # The challenge's files may begin with "/": in a folder that was named, they lie there all the same.
        return str(self.folder / (str(name).lstrip("/") if self.strips_slash else str(name)))

    def blocks(
        self, max_rows: int = LOOK_AHEAD_ROWS, max_bytes: int = LOOK_AHEAD_BYTES
    ) -> Iterator[list[tuple[int, int, dict[str, Any]]]]:
        """Number, line and columns of all rows, in order, in blocks that depend on nothing but the table."""
        block, size = [], 0
        for number, (line, row) in enumerate(self.rows()):
            block.append((number, line, row))
            audio = row[self.audio_column]
            size += len(audio.get("bytes") or b"") if isinstance(audio, Mapping) else 0
            if len(block) >= max_rows or size >= max_bytes:
                yield block
                block, size = [], 0
        if block:
            yield block

    def clips(self, block: list[tuple[int, int, dict[str, Any]]]) -> list[Clip]:
        """The distinct sounds of a block, in order of first appearance, each with all its rows."""
        clips: dict[Any, Clip] = {}
        for number, line, row in block:
            audio = self.audio(row)
            content = audio["bytes"] if isinstance(audio, dict) else None
            key = hashlib.sha256(content).digest() if isinstance(content, bytes) else str(audio)
            clip = clips.setdefault(key, Clip(audio))
            clip.rows.append(PairRow(number, line, row[self.text_column]))
        return list(clips.values())


def _copy_of_stdin(owner: PairSource) -> Path:
    """Standard input as a file, which is read more than once; it is gone with its owner."""
    owner.file = tempfile.NamedTemporaryFile(suffix=".csv")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, owner.file)
    owner.file.flush()
    return Path(owner.file.name)


def _one_split(name: str | Path, split: str | None) -> Dataset:
    """The split that was named, or the only one."""
    if split is not None:
        return load_pairs(name, split)
    splits = load_pairs(name)
    if len(splits) > 1:
        raise ValueError(f"{name}: has the splits {', '.join(splits)}; choose one with --split.")
    return next(iter(splits.values()))


def _bytes_digest(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
