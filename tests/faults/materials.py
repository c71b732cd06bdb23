"""The inputs of all tasks, small enough that a run takes a second or two: clips, tables, datasets, a teacher."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from teachers import CAPTIONS, SAMPLING_RATE, make_clip, save_teacher

from modeling_xacle.data.pairs import make_dataset, save_dataset

CLIPS, TRAIN, PAIRS = 12, 8, 40


def write_world(folder: Path) -> None:
    """Write all inputs into a folder; datasets name their clips by absolute paths."""
    (folder / "clips").mkdir(parents=True)
    for number in range(CLIPS):
        soundfile.write(folder / "clips" / f"{number}.wav", make_clip(0.3 + 0.1 * number, number), SAMPLING_RATE)
    write_tables(folder)
    write_dataset(folder)
    save_teacher(folder / "teacher")


def write_tables(folder: Path) -> None:
    """Pairs to score, captions in two versions to prepare, and two systems' scores with the listeners'."""
    generator = np.random.default_rng(0)
    pairs = [(f"{number % CLIPS}.wav", f"{CAPTIONS[number % 4]} {number}") for number in range(PAIRS)]
    write_table(folder / "clips/pairs.csv", ("audio", "text"), pairs)
    write_table(folder / "clips/train.csv", ("audio", "text"), pairs[: PAIRS // 2])
    write_table(folder / "clips/old.csv", ("audio", "text"), pairs[PAIRS // 2 :])
    for name in ("a", "b", "listeners"):
        rows = [(*pair, round(float(generator.uniform(0, 10)), 3)) for pair in pairs]
        write_table(folder / f"{name}.csv", ("wav_file_name", "text", "score"), rows)


def write_dataset(folder: Path) -> None:
    """A dataset that serves labelling and all stages."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(CLIPS):
        label = float(generator.uniform(-1, 1))
        text = f"{CAPTIONS[number % 4]} {'loud ' * (number % 3)}"
        row = {"id": str(number), "audio": str(folder / "clips" / f"{number}.wav"), "text": text, "label": label}
        rows.append({**row, "score": 5 * (label + 1), "is_negative": number % 3 == 0})
    save_dataset({"train": make_dataset(rows[:TRAIN]), "validation": make_dataset(rows[TRAIN:])}, folder / "dataset")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
