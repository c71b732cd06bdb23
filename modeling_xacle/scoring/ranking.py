"""Many sounds against many captions: the whole matrix of scores, each sound encoded once, and its heat map."""

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm import tqdm
from transformers.utils import logging

from ..data.columns import TEXT_COLUMNS, find_column
from ..data.files import read_text, write_whole
from ..data.tables import FORMATS, check_table_suffix, read_table
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .groups import check_finite

logger = logging.get_logger(__name__)

AUDIO_COLUMN = "audio"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")

# The heat map: most characters of a label, most labels along a side, most cells along a side with numbers; inches.
LABEL_LENGTH = 48
MOST_LABELS = 60
MOST_NUMBERS = 16
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.42
DOTS_PER_INCH = 150
SMALLEST_SIDE, LARGEST_SIDE = 2.5, 24.0
# Share of the colour map above which it is light enough for dark numbers.
LIGHT = 0.6


def score_rows(
    align: AudioTextAlignmentPipeline, audios: Sequence[Any], texts: Sequence[str], batch_size: int = 8
) -> Iterator[list[dict[str, Any]]]:
    """
    Scores each clip with every caption and yields results as they come, with a progress bar on stderr.

    Args:
        align (`AudioTextAlignmentPipeline`): The scorer.
        audios (`Sequence` of length M): Clips, each as `load_waveform` takes them without a sampling rate.
        texts (`Sequence[str]` of length N): Captions.
        batch_size (`int`): Clips loaded together.

    Yields:
        For each clip, in order, N dicts with `text`, `score` and, where there is something to say, `notes`.

    Raises:
        ValueError: There are no clips or no captions; a caption is empty; a sound is unusable; a score is not finite.
        FileNotFoundError: A sound does not exist.
    """
    texts = list(texts)
    if not len(audios) or not texts:
        raise ValueError(f"{len(audios)} sounds and {len(texts)} captions: at least one of each is needed.")
    inputs = ({"audio": audio, "text": texts} for audio in audios)
    results = tqdm(align(inputs, batch_size=batch_size), total=len(audios), desc="sounds", unit="sound", disable=None)
    for number, (audio, found) in enumerate(zip(audios, results, strict=True)):
        check_finite(found, str(audio) if isinstance(audio, (str, Path)) else f"sound {number}")
        yield found


def score_matrix(
    align: AudioTextAlignmentPipeline, audios: Sequence[Any], texts: Sequence[str], batch_size: int = 8
) -> np.ndarray:
    """
    Returns the scores of all pairs of M clips and N captions. Each clip is encoded once, even if its path is repeated.

    Args:
        align (`AudioTextAlignmentPipeline`): The scorer.
        audios (`Sequence` of length M): Clips, each as `load_waveform` takes them without a sampling rate.
        texts (`Sequence[str]` of length N): Captions; a repeated one is scored once.
        batch_size (`int`): Clips loaded together.

    Returns:
        `np.ndarray` of shape `(M, N)`: float64, on the model's scale of 0-10, within 1e-4 of the score of each pair
        alone.

    Raises:
        ValueError, FileNotFoundError: As for `score_rows`.
    """
    keys = [str(audio) if isinstance(audio, (str, Path)) else id(audio) for audio in audios]
    unique_audios = dict(zip(keys, audios, strict=True))
    unique_texts = list(dict.fromkeys(texts))
    names = [key if isinstance(key, str) else f"sound {index}" for index, key in enumerate(unique_audios)]
    scores = []
    rows_of_results = score_rows(align, list(unique_audios.values()), unique_texts, batch_size)
    for name, results in zip(names, rows_of_results, strict=True):
        scores.append([result["score"] for result in results])
        _warn_of_cuts(name, results)
    rows = {key: row for row, key in enumerate(unique_audios)}
    columns = {text: column for column, text in enumerate(unique_texts)}
    return np.array(scores)[np.ix_([rows[key] for key in keys], [columns[text] for text in texts])]


def rank_pairs(
    align: AudioTextAlignmentPipeline, audios: Sequence[Any], texts: Sequence[str], batch_size: int = 8
) -> list[dict[str, Any]]:
    """
    Orders clips by how well they match a caption, or captions by how well they match a clip, best first.

    Args:
        align (`AudioTextAlignmentPipeline`), batch_size (`int`): As for `score_rows`.
        audios (`Sequence` of length M), texts (`Sequence[str]` of length N): Usually, one of them has length 1.

    Returns:
        M * N dicts with `rank` (from 1; equal scores stay in the given order), `audio`, `text`, `score` and, where
        there is something to say, `notes`.

    Raises:
        ValueError, FileNotFoundError: As for `score_rows`.
    """
    rows = zip(audios, score_rows(align, audios, texts, batch_size), strict=True)
    pairs = [{"audio": audio, **result} for audio, results in rows for result in results]
    pairs.sort(key=lambda pair: -pair["score"])
    return [{"rank": place, **pair} for place, pair in enumerate(pairs, 1)]


def check_matrix(output: str | Path | None, texts: Sequence[str]) -> None:
    """
    Refuse a table that could not be written, before anything is scored.

    Raises:
        ValueError: A caption has the name of the table's first column, or the output's suffix is unknown.
    """
    if output is not None:
        check_table_suffix(output)
    if AUDIO_COLUMN in texts:
        raise ValueError(f"The caption {AUDIO_COLUMN!r} is the name of the table's first column: write it otherwise.")


def matrix_rows(scores: np.ndarray, audios: Sequence[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a table of scores (M, N): the column `audio`, then one for each caption; one row per clip."""
    return [
        {AUDIO_COLUMN: audio, **dict(zip(texts, row, strict=True))}
        for audio, row in zip(audios, scores.tolist(), strict=True)
    ]


def _warn_of_cuts(name: str, results: list[dict[str, Any]]) -> None:
    """Warn of what was cut from a clip or a caption, once per clip."""
    for note in dict.fromkeys(note for result in results for note in result.get("notes", []) if "cut:" in note):
        logger.warning(f"{name}: {note}")


def read_texts(path: str | Path) -> list[str]:
    """
    Reads the captions of a file, each once, in their order: the column `text` or `caption` of a table (`.csv`, `.tsv`,
    `.jsonl`, `.parquet`), or else the lines of a UTF-8 text file that are not blank.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for `read_table`; or there is no caption.
    """
    if Path(path).suffix.lower() in FORMATS:
        columns, rows = read_table(path)
        column = find_column(columns, TEXT_COLUMNS, path)
        texts = []
        for line, row in rows:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{path}, line {line}: has no caption; fill it in or remove the line.")
            texts.append(row[column])
    else:
        texts = _lines(path)
    if not texts:
        raise ValueError(f"{path}: has no captions; write one a line.")
    return list(dict.fromkeys(texts))


def _lines(path: str | Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def list_audio(folder: str | Path) -> list[Path]:
    """
    Returns the sounds of a folder, sorted by name.

    Raises:
        ValueError: There is no such folder, or no sound in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder.")
    found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: no sounds in it ({', '.join(AUDIO_SUFFIXES)}).")
    return found


def check_picture(path: str | Path) -> None:
    """
    Refuse a picture of unknown format before anything is scored.

    Raises:
        ValueError: The suffix is none of `PICTURE_SUFFIXES`.
    """
    if Path(path).suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"{path}: a picture's name must end in {', '.join(PICTURE_SUFFIXES)}.")


def draw_heat_map(scores: np.ndarray, audios: Sequence[str], texts: Sequence[str], path: str | Path) -> None:
    """
    Draw a matrix of scores, with a frame around the best caption of each clip.

    Args:
        scores (`np.ndarray` of shape `(M, N)`): One row per clip. The colours span its values.
        audios (`Sequence[str]` of length M): Names of the clips.
        texts (`Sequence[str]` of length N): Captions.
        path (`str` or `Path`): The picture to write; its suffix sets the format.

    Raises:
        ValueError: The suffix is none of `PICTURE_SUFFIXES`.
    """
    check_picture(path)
    num_rows, num_columns = scores.shape
    width, height = (
        float(np.clip(cells * size, SMALLEST_SIDE, LARGEST_SIDE))
        for cells, size in ((num_columns, CELL_WIDTH), (num_rows, CELL_HEIGHT))
    )
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    figure.subplots_adjust(0, 0, 1, 1)  # labels lie outside; the tight box keeps them
    image = axes.imshow(scores, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_xticks(*_labels(texts), rotation=45, ha="left", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(*_labels(audios), parse_math=False)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    bar = axes.inset_axes([1 + 0.15 / width, 0, 0.15 / width, 1])
    figure.colorbar(image, cax=bar, label="score")
    if max(scores.shape) <= MOST_NUMBERS:
        _write_numbers(axes, scores, image.norm)
    if 1 < num_columns <= MOST_LABELS and num_rows <= MOST_LABELS:
        _frame_best(axes, scores)
    if num_columns > MOST_LABELS:
        axes.set_xlabel(f"{num_columns} captions")
    if num_rows > MOST_LABELS:
        axes.set_ylabel(f"{num_rows} sounds")
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure.savefig(picture, format=Path(path).suffix[1:], dpi=DOTS_PER_INCH, bbox_inches="tight")
    write_whole(path, picture.getvalue())


def _labels(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Returns places and texts of the labels along a side: none if there are too many to be readable."""
    if len(names) > MOST_LABELS:
        return [], []
    names = ["".join(char if char.isprintable() else "?" for char in name) for name in names]
    cut = [name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 4]} ..." for name in names]
    return list(range(len(names))), cut


def _frame_best(axes: Axes, scores: np.ndarray) -> None:
    """Draw a frame around the largest score of each row (M, N)."""
    for row, column in enumerate(scores.argmax(axis=1)):
        corner, size = (column - 0.46, row - 0.44), (0.92, 0.88)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="crimson", linewidth=1.8))
    axes.set_xlabel("framed: the best caption of each clip")


def _write_numbers(axes: Axes, scores: np.ndarray, norm: Normalize) -> None:
    """Write each score (M, N) into its cell."""
    decimals = 1 if np.ptp(scores) >= 1 else 2
    for (row, column), score in np.ndenumerate(scores):
        color = "black" if norm(score) > LIGHT else "white"
        axes.text(column, row, f"{score:.{decimals}f}", ha="center", va="center", color=color, fontsize=9)
