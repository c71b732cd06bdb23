"""Tables of short clips to score, and a stand-in for the model that notes what it was asked."""

import csv
import random
import time
import zlib

import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE
from teachers import make_clip

from modeling_xacle.data.tables import read_table
from modeling_xacle.pipeline_xacle import AudioTextAlignmentPipeline
from modeling_xacle.waveforms_xacle import load_waveform

TEXTS = ["beep", "A dog barks", "Rain falls, while a man speaks", "a bell"]
SECONDS = 120  # longest wait for a process


class StandIn:
    """Takes the place of the model where its speed is not the point: a score from length and caption, by checksum."""

    def __init__(self, align, pause=0.0):
        self.model, self.processor, self.device, self.pause = align.model, align.processor, align.device, pause
        self.passes = []

    tokenize = AudioTextAlignmentPipeline.tokenize
    postprocess = AudioTextAlignmentPipeline.postprocess
    without_model = AudioTextAlignmentPipeline.without_model

    def preprocess(self, inputs, window_seconds=None, hop_seconds=None, tokenized=None):
        waveform, notes = load_waveform(inputs["audio"])
        captions = list(inputs["text"])
        return {
            "length": len(waveform),
            "captions": captions,
            "spans": [(0, len(waveform))],
            "notes": [notes] * len(captions),
            "is_list": True,
        }

    def with_spectrograms(self, item):
        return item

    def forward(self, items, pass_size):
        self.passes.append([item["length"] for item in items])
        time.sleep(self.pause)
        return [torch.tensor([[self.score(item["length"], text) for text in item["captions"]]]) for item in items]

    @staticmethod
    def score(length, text):
        return zlib.crc32(f"{length} {text}".encode()) / 2**32 * 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of 12 clips of different lengths, from 0.05 s to 0.6 s."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", make_clip(0.05 * (number + 1), number), SAMPLING_RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


def write_rows(path, rows, columns=("audio", "text", "key")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.fixture(scope="module")
def rows():
    """Forty pairs; rows of a clip lie far apart."""
    pairs = [(f"{number}.wav", text) for number in range(10) for text in TEXTS]
    random.Random(0).shuffle(pairs)
    return [(*pair, key) for key, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def table(clips, rows):
    return write_rows(clips / "pairs.csv", rows)


@pytest.fixture(scope="module")
def expected(align, clips, rows):
    """Scores of the pairs, one at a time."""
    return [align({"audio": str(clips / name), "text": text})["score"] for name, text, _ in rows]


def scores(path):
    lines = [row for _, row in read_table(path)[1]] if path.suffix in (".jsonl", ".parquet") else read_rows(path)
    return [float(row["score"]) for row in lines]


def many_rows(count, seed=0):
    """Rows of 12 clips; one in a hundred names a missing, a broken or no clip, or has no caption."""
    generator = random.Random(seed)
    broken = [("gone.wav", "a"), ("broken.wav", "a"), ("", "a"), ("3.wav", " ")]
    rows = [(f"{generator.randrange(12)}.wav", f"caption {generator.randrange(500)}") for _ in range(count)]
    for place in range(0, count, 100):
        rows[place] = broken[place // 100 % 4]
    return [(*row, key) for key, row in enumerate(rows)]
