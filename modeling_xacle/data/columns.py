"""The schema of a pair: its columns and their types, the names that tables give them, captions in normal form."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from datasets import Audio, Features, List, Value

FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(decode=False),
        "text": Value("string"),
        "label": Value("float32"),
        "score": Value("float64"),
        "ratings": List(Value("float32")),
        "listener_ids": List(Value("string")),
        "source": Value("string"),
        "is_negative": Value("bool"),
    }
)
REQUIRED_COLUMNS = ("id", "audio", "text")
# Audio goes into columns as plain structs: encoding it as `Audio` needs torchcodec, casting to it does not.
STORAGE = Features({**FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})
# Names that tables give their columns; of each, the first that a table has is taken. In the challenge, README files and
# data files differ in spelling; its second edition names the generator `model_id`.
AUDIO_COLUMNS = ("wav_file_name", "wave_file_name", "audio", "file_name", "path")
TEXT_COLUMNS = ("text", "caption")
# What `xacle score` may say of a row, behind its prefix.
RESULT_COLUMNS = ("score", "status", "notes", "windows", "signature")
PREDICTION_COLUMNS = ("pred_score", "prediction_score", "score")
AVERAGE_COLUMNS = ("average_score", "average_semantic_alignement_score", "average_semantic_alignment_score")
REFERENCE_COLUMNS = (*AVERAGE_COLUMNS, "score")
RATING_COLUMNS = ("score", "11-point semantic-alignment score", "rating")
LISTENER_COLUMNS = ("listener_id",)
XACLE_COLUMNS = ("wav_file_name", "pred_score")  # the header that the official script reads
SOURCE_COLUMNS = ("source", "model_id")

LABEL_RANGE = (-1.0, 1.0)
SCORE_RANGE = (0.0, 10.0)
# Unicode categories: control and format characters, surrogates.
DROPPED_CHARACTERS = ("Cc", "Cf", "Cs")


def clean_caption(text: str) -> str:
    """
    The caption in one line of normal form C: every run of whitespace is one space, without those at the ends, and
    control characters, invisible format characters and lone surrogates are gone.
    """
    kept = (char for char in text if char.isspace() or unicodedata.category(char) not in DROPPED_CHARACTERS)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def find_column(
    columns: Iterable[str], candidates: Iterable[str], table: str | Path, required: bool = True
) -> str | None:
    """
    The first of the candidates that is a column of the table; `None` if there is none and none is required.

    Raises:
        ValueError: A required column is missing.
    """
    columns, candidates = list(columns), list(candidates)
    found = next((name for name in candidates if name in columns), None)
    if found is None and required:
        raise ValueError(
            f"{table}: no column {' or '.join(candidates)}; it has {', '.join(columns)}. Rename one of them, or "
            "name it where there is an option for it."
        )
    return found
