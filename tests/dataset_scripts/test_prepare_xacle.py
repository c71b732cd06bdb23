"""`dataset_scripts/prepare_xacle.py` on small trees in the layouts of the challenge and of RELATE."""

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run_script

from modeling_xacle.data.pairs import check_rows, load_pairs

SCRIPT = ROOT / "dataset_scripts" / "prepare_xacle.py"
NAMES = [f"{number:05d}.wav" for number in range(4)]
RATINGS = {
    "00000.wav": [("L1", 10), ("L2", 9), ("L3", 8), ("L4", 10)],
    "00001.wav": [("L1", 0), ("L2", 1), ("L5", 0), ("L6", 2)],
    "00002.wav": [("L3", 5), ("L4", 6), ("L5", 7), ("L6", 5)],
    "00003.wav": [("L1", 3), ("L2", 3), ("L3", 4), ("L4", 2)],
}
AVERAGES = {"00000.wav": 9.25, "00001.wav": 0.75, "00002.wav": 5.75, "00003.wav": 3.0}
TEXTS = {name: f'A dog barks, then "scene" {number}' for number, name in enumerate(NAMES)}


run = partial(run_script, SCRIPT)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_clips(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.sin(np.arange(1600) / 9), 16000)


def write_split(root, split="train", slash="", columns=("wav_file_name", "score", "average_score")):
    """Ratings, averages and clips of one split, as the archives have them."""
    name, score, average = columns
    rows = [(slash + clip, TEXTS[clip], rating, who) for clip in NAMES for who, rating in RATINGS[clip]]
    write_csv(root / "meta_data" / f"{split}.csv", [name, "text", score, "listener_id"], rows)
    rows = [(slash + clip, TEXTS[clip], AVERAGES[clip]) for clip in NAMES]
    write_csv(root / "meta_data" / f"{split}_average.csv", [name, "text", average], rows)
    write_clips(root / "wav" / split)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path / "XACLE_dataset")
    return tmp_path / "XACLE_dataset"


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    "columns",
    [
        ("wav_file_name", "score", "average_score"),
        ("wave_file_name", "11-point semantic-alignment score", "average_semantic_alignement_score"),
    ],
)
def test_ratings_are_joined_to_averages(tmp_path, slash, columns):
    write_split(tmp_path / "in", slash=slash, columns=columns)
    code, stdout, stderr = run(tmp_path / "in", "-o", tmp_path / "out")
    assert (code, stderr) == (0, "")
    assert "train: pairs 4, ratings 16, listeners 6, mean score 4.6875" in stdout
    train = load_pairs(tmp_path / "out", "train")
    assert check_rows(train) == []
    assert train["id"][:] == NAMES
    for row in train:
        assert row["text"] == TEXTS[row["id"]]
        assert row["score"] == AVERAGES[row["id"]]
        assert row["label"] == pytest.approx(row["score"] / 5 - 1)
        assert list(zip(row["listener_ids"], row["ratings"], strict=True)) == RATINGS[row["id"]]
        assert Path(row["audio"]["path"]) == (tmp_path / "in" / "wav" / "train" / row["id"]).absolute()


@pytest.mark.parametrize("place", ["wav/test", "wav"])
def test_trees_of_several_archives_and_an_unlabelled_test(tmp_path, root, place):
    write_split(root, "validation")
    test = tmp_path / "XACLE_test_data"
    write_csv(test / "meta_data" / "test.csv", ["wav_file_name", "text"], [(name, TEXTS[name]) for name in NAMES])
    write_clips(test / place)
    assert run(tmp_path, "-o", tmp_path / "out")[0] == 0
    pairs = load_pairs(tmp_path / "out")
    assert list(pairs) == ["train", "validation", "test"]
    assert "score" in pairs["validation"].column_names
    assert not {"score", "label", "ratings"} & set(pairs["test"].column_names)


@pytest.mark.parametrize(("name", "column"), [("test_average", "average_score"), ("test_with_score", "score")])
def test_labelled_test(tmp_path, name, column):
    write_csv(tmp_path / "meta_data" / "test.csv", ["wav_file_name", "text"], TEXTS.items())
    rows = [(clip, TEXTS[clip], score) for clip, score in AVERAGES.items()]
    write_csv(tmp_path / "meta_data" / f"{name}.csv", ["wav_file_name", "text", column], rows)
    write_clips(tmp_path / "wav" / "test")
    assert run(tmp_path, "-o", tmp_path / "out")[0] == 0
    test = load_pairs(tmp_path / "out", "test")
    assert dict(zip(test["id"], test["score"], strict=True)) == AVERAGES


def test_model_id_becomes_source(tmp_path, root):
    rows = [(f"/{clip}", TEXTS[clip], AVERAGES[clip], f"tta_{number}") for number, clip in enumerate(NAMES)]
    write_csv(root / "meta_data" / "train_average.csv", ["wave_file_name", "text", "average_score", "model_id"], rows)
    assert run(root, "-o", tmp_path / "out")[0] == 0
    assert load_pairs(tmp_path / "out", "train")["source"][:] == ["tta_0", "tta_1", "tta_2", "tta_3"]


def test_average_is_recomputed_and_a_mismatch_reported(tmp_path, root):
    edit(root / "meta_data" / "train_average.csv", "5.75", "6.5")
    code, _, stderr = run(root, "-o", tmp_path / "out")
    assert code == 0
    assert "00002.wav: the published average 6.5 is kept, but its 4 ratings average 5.75" in stderr
    assert load_pairs(tmp_path / "out", "train")["score"][2] == 6.5
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["remarks"]) == 1


def test_averages_come_from_ratings_where_none_are_published(tmp_path, root):
    (root / "meta_data" / "train_average.csv").unlink()
    assert run(root, "-o", tmp_path / "out")[0] == 0
    assert load_pairs(tmp_path / "out", "train")["score"][:] == list(AVERAGES.values())


def broken_clip(root):
    (root / "wav" / "train" / "00001.wav").write_bytes(b"<html>not found</html>")


PROBLEMS = {
    "clip": (lambda root: (root / "wav" / "train" / "00001.wav").unlink(), "no such audio file"),
    "broken clip": (broken_clip, "not audio that libsndfile can read"),
    "score": (lambda root: edit(root / "meta_data" / "train_average.csv", "0.75", "10.5"), "'10.5' is not a number"),
    "word": (lambda root: edit(root / "meta_data" / "train_average.csv", "0.75", "n/a"), "'n/a' is not a number"),
    "nan": (lambda root: edit(root / "meta_data" / "train_average.csv", "0.75", "nan"), "'nan' is not a number"),
    "rating": (lambda root: edit(root / "meta_data" / "train.csv", ",2,L6", ",-2,L6"), "the rating '-2'"),
    "text": (
        lambda root: [edit(path, '"A dog barks, then ""scene"" 1"', " \t") for path in (root / "meta_data").iterdir()],
        "the text is empty",
    ),
    "two texts": (lambda root: edit(root / "meta_data" / "train_average.csv", '""scene"" 1', "rain"), "two texts"),
    "conflict": (lambda root: edit(root / "meta_data" / "train_average.csv", "00000.wav", "00001.wav"), "listed twice"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_are_listed_and_stop_unless_allowed(tmp_path, root, name):
    spoil, message = PROBLEMS[name]
    spoil(root)
    code, stdout, stderr = run(root, "-o", tmp_path / "out")
    assert code == 1
    assert "00001.wav: " in stderr and message in stderr and "--allow-missing" in stderr
    assert "Traceback" not in stderr and stdout == "" and not (tmp_path / "out").exists()
    assert run(root, "-o", tmp_path / "out", "--allow-missing")[0] == 0
    train = load_pairs(tmp_path / "out", "train")
    assert check_rows(train) == []
    assert "00001.wav" not in train["id"][:] and len(train) == 3
    assert message in json.dumps(json.loads((tmp_path / "out" / "report.json").read_text())["problems"])


def test_row_that_is_repeated_is_kept_once(tmp_path, root):
    table = root / "meta_data" / "train_average.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    code, _, stderr = run(root, "-o", tmp_path / "out")
    assert code == 1 and "00000.wav: listed twice" in stderr
    assert run(root, "-o", tmp_path / "out", "--allow-missing")[0] == 0
    assert load_pairs(tmp_path / "out", "train")["id"][:] == NAMES


def test_a_clip_without_its_score_is_a_problem(tmp_path, root):
    edit(root / "meta_data" / "train.csv", "00003.wav", "00002.wav")
    edit(root / "meta_data" / "train.csv", '""scene"" 3', '""scene"" 2')
    table = root / "meta_data" / "train_average.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "00003" not in line))
    write_csv(root / "meta_data" / "train_with_score.csv", ["wav_file_name", "text"], TEXTS.items())
    code, _, stderr = run(root, "-o", tmp_path / "out")
    assert code == 1 and "00003.wav: no score, although others have one" in stderr


MALFORMED = {
    "columns": ("file,caption\n00000.wav,Rain\n", "no column wav_file_name or wave_file_name"),
    "ragged": ("wav_file_name,text,average_score\n00000.wav,Rain, then wind,5\n", "line 2: 4 fields"),
    "quote": ('wav_file_name,text,average_score\n00000.wav,"Rain,5\n', "a quote may be missing"),
    "twice": ("wav_file_name,text,text\n00000.wav,Rain,Wind\n", "more than one column text"),
    "empty": ("", "the table is empty"),
    "encoding": ("wav_file_name,text,average_score\n00000.wav,Caf\udce9,5\n", "not UTF-8 (byte 0xe9"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_table_is_named(tmp_path, root, name):
    content, message = MALFORMED[name]
    (root / "meta_data" / "train_average.csv").write_bytes(content.encode(errors="surrogateescape"))
    code, stdout, stderr = run(root, "-o", tmp_path / "out", "--allow-missing")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("error: ") and "train_average.csv" in stderr and message in stderr
    assert len(stderr.splitlines()) == 1


def test_wrong_folders(tmp_path, root):
    assert "no such folder" in run(tmp_path / "nowhere", "-o", tmp_path / "out")[2]
    assert "no meta_data/" in run(root / "wav", "-o", tmp_path / "out")[2]
    write_split(tmp_path / "XACLE_2027")
    assert "has the split train twice" in run(tmp_path, "-o", tmp_path / "out")[2]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert run(root, "-o", tmp_path / "thesis")[0] == 1
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_again_gives_the_same_files(tmp_path, root):
    contents = []
    for _ in range(2):
        assert run(root, "-o", tmp_path / "out")[0] == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["XACLE_dataset", "out"]


def test_embedded_sounds_outlive_their_files(tmp_path, root):
    sound = (root / "wav" / "train" / NAMES[0]).read_bytes()
    assert run(root, "-o", tmp_path / "out", "--embed-audio")[0] == 0
    (root / "wav" / "train" / NAMES[0]).unlink()
    train = load_pairs(tmp_path / "out", "train")
    assert train[0]["audio"] == {"bytes": sound, "path": NAMES[0]}
    assert check_rows(train) == []


RELATE_HEADER = [
    "wavname",
    "text",
    "score",
    "listener_id",
    "audio type",
    "anchor label",
    "in RELATE dataset",
    "in AudioCaps",
]
RELATE_ROWS = [
    ("/audiocaps/train/1.wav", "Rain", 9, "0001", "natural", "False", "train", "train"),
    ("/audiocaps/train/1.wav", "Rain", 6, "0002", "natural", "False", "train", "train"),
    ("/audiocaps/train/1.wav", "Wind", 2, "0002", "natural", "False", "train", "train"),
    ("/tango/train/1.wav", "Rain", 4, "0001", "tango", "False", "validation", "train"),
    ("/audioldm/test/2.wav", "A bell", 5, "0003", "audioldm", "False", "test", "test"),
    ("/audiocaps/train/3.wav", "Rain", 0, "0001", "natural", "True", "excluded", ""),
    ("/audiocaps/test/2.wav", "A bell", 1, "0006", "natural", "False", "excluded", "test"),
]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("first_release", [False, True])
def test_relate(tmp_path, beside, first_release):
    rows, header = RELATE_ROWS, RELATE_HEADER
    if first_release:
        header = [name for name in header if name != "anchor label"]
        rows = [("/wav" + r[0], *r[1:4], "anchor" if r[5] == "True" else r[4], *r[6:]) for r in rows]
    write_csv(tmp_path / "RELATE" / "scores" / "REL.csv", header, rows)
    write_clips(
        tmp_path / ("" if beside else "RELATE") / "RELATE_wave", [row[0].lstrip("/") for row in RELATE_ROWS[:5]]
    )
    code, _, stderr = run(tmp_path / "RELATE", "--relate", "-o", tmp_path / "out")
    assert code == 0
    assert "1 ratings of anchors left out" in stderr and "1 ratings by screened listeners left out" in stderr
    pairs = load_pairs(tmp_path / "out")
    assert {name: len(split) for name, split in pairs.items()} == {"train": 2, "validation": 1, "test": 1}
    first, second = pairs["train"]
    assert (first["score"], first["ratings"], first["listener_ids"]) == (7.5, [9, 6], ["0001", "0002"])
    assert (first["label"], first["source"], second["text"]) == (0.5, "natural", "Wind")
    assert second["id"] == first["id"] + "#2" and check_rows(pairs["train"]) == []


def test_relate_wants_the_table_with_splits(tmp_path):
    header = [name for name in RELATE_HEADER if name != "in RELATE dataset"]
    write_csv(tmp_path / "REL.csv", header, [row[:6] + row[7:] for row in RELATE_ROWS])
    code, _, stderr = run(tmp_path, "--relate", "-o", tmp_path / "out")
    assert code == 1 and "no column in RELATE dataset" in stderr


def test_help():
    code, stdout, _ = run("--help")
    assert code == 0
    assert all(option in stdout for option in ("--output", "--relate", "--allow-missing", "--embed-audio"))


def test_as_a_command(tmp_path, root):
    (root / "wav" / "train" / "00001.wav").unlink()
    done = subprocess.run([sys.executable, SCRIPT, root, "-o", tmp_path / "out"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "train: 00001.wav: " in done.stderr and "Traceback" not in done.stderr
