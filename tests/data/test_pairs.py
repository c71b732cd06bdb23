"""The schema: building, checking, saving and loading tables of pairs, and batches of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset

from modeling_xacle.data import pairs
from modeling_xacle.data.columns import FEATURES, clean_caption, find_column
from modeling_xacle.data.pairs import check_rows, load_pairs, make_dataset, save_dataset, unusable_audio
from modeling_xacle.data.tables import read_table

FULL = {"label": 0.5, "score": 7.5, "ratings": [7, 8], "listener_ids": ["a", "b"], "source": "x", "is_negative": False}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of three clips of different lengths."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.sin(np.arange(8000 * (number + 1)) / (9 + number)) / 2, 16000)
    return [str(path) for path in paths]


@pytest.fixture
def rows(clips):
    return [{"id": str(number), "audio": path, "text": f"Sound {number}"} for number, path in enumerate(clips)]


@pytest.fixture
def full_rows(rows):
    return [{**row, **FULL} for row in rows]


@pytest.mark.parametrize("embed_audio", [False, True])
def test_saved_pairs_load_as_they_were(tmp_path, rows, full_rows, embed_audio):
    splits = {"train": make_dataset(full_rows), "unlabelled": make_dataset(rows)}
    save_dataset(splits, tmp_path / "out", embed_audio=embed_audio, card="# Pairs\n")
    loaded = load_pairs(tmp_path / "out")
    assert list(loaded) == list(splits)
    assert loaded["train"].features == FEATURES
    assert loaded["unlabelled"].column_names == ["id", "audio", "text"]
    for name, split in splits.items():
        assert loaded[name].remove_columns("audio").to_list() == split.remove_columns("audio").to_list()
        for row, original in zip(loaded[name], split, strict=True):
            path = Path(original["audio"]["path"])
            expected = {"bytes": path.read_bytes(), "path": path.name} if embed_audio else original["audio"]
            assert row["audio"] == expected
    assert "# Pairs" in (tmp_path / "out" / "README.md").read_text()
    assert load_pairs(tmp_path / "out", "train").to_list() == loaded["train"].to_list()


def test_a_new_dataset_at_the_same_place_is_the_one_that_loads(tmp_path, rows):
    for text in ("Rain", "Wind", "Hail"):
        save_dataset({"train": make_dataset([{**row, "text": text} for row in rows])}, tmp_path / "out")
        assert set(load_pairs(tmp_path / "out", "train")["text"]) == {text}
        assert set(load_dataset(str(tmp_path / "out"), split="train")["text"]) == {text}


def test_interrupted_saving_keeps_the_earlier_dataset(tmp_path, rows, monkeypatch):
    save_dataset({"train": make_dataset(rows)}, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def interrupt(*_):
        raise KeyboardInterrupt

    for step in ("pairs.embed_table_storage", "pairs._write_card", "files.replace_folder"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"modeling_xacle.data.{step}", interrupt)
            save_dataset({"train": make_dataset(rows[:1])}, tmp_path / "out", embed_audio=True)
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    save_dataset({"test": make_dataset(rows[:1])}, tmp_path / "out")
    assert list(load_pairs(tmp_path / "out")) == ["test"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_own_work_is_replaced(tmp_path, rows):
    split = {"train": make_dataset(rows)}
    for name, content in {"README.md": "# Mine\n", "data.parquet": "x"}.items():
        folder = tmp_path / name.lower()
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match="not written by this command"):
            save_dataset(split, folder)
        assert (folder / name).read_text() == content
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="choose another output"):
        save_dataset(split, tmp_path / "file")
    save_dataset(split, tmp_path / "own", attachments={"report.json": "{}", "plot.png": b"\x89PNG"})
    assert (tmp_path / "own" / "plot.png").read_bytes() == b"\x89PNG"
    (tmp_path / "own" / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"would be lost, move them first: mine\.txt"):
        save_dataset(split, tmp_path / "own")
    (tmp_path / "own" / "mine.txt").unlink()
    save_dataset(split, tmp_path / "own")
    assert not (tmp_path / "own" / "plot.png").exists()


def test_files_do_not_depend_on_the_run(tmp_path, full_rows):
    for name in ("a", "b"):
        save_dataset({"train": make_dataset(full_rows)}, tmp_path / name / "out", embed_audio=True)
    for path in (tmp_path / "a" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "out" / path.name).read_bytes()


def test_a_sound_that_was_cut_since_it_was_checked_is_not_embedded(tmp_path, rows):
    file = tmp_path / "cut.wav"
    file.write_bytes(Path(rows[1]["audio"]).read_bytes()[:1000])
    split = {"train": make_dataset([rows[0], {**rows[1], "audio": str(file)}])}
    with pytest.raises(ValueError, match=r"cut\.wav: the file is truncated: .* It cannot be embedded"):
        save_dataset(split, tmp_path / "out", embed_audio=True)
    assert not (tmp_path / "out").exists()


def test_large_splits_are_written_in_parts(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(pairs, "EMBEDDED_ROWS_PER_WRITE", 2)
    save_dataset({"train": make_dataset(rows).select([2, 0, 1])}, tmp_path / "out", embed_audio=True)
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 2
    assert load_pairs(tmp_path / "out", "train")["id"][:] == ["2", "0", "1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, r"row 1 \(1\): text is missing"),
        ({"id": None}, r"row 1 \(None\): id is missing"),
        ({"caption": "x"}, "unknown column caption; the schema has id, audio, text"),
        ({"audio": "clips/1.wav"}, "the path clips/1.wav is relative"),
    ],
)
def test_rows_outside_the_schema_are_refused(rows, change, message):
    rows[1].update(change)
    with pytest.raises(ValueError, match=message):
        make_dataset(rows)


def test_foreign_tables_are_cast_or_refused(tmp_path, rows, clips):
    columns = {"id": [7, 8, 9], "text": ["a", "b", "c"], "score": [1, 2, 3], "extra": [True, True, False]}
    table = Dataset.from_dict({**columns, "audio": clips}).cast_column("audio", Audio())
    (tmp_path / "in").mkdir()
    table.to_parquet(tmp_path / "in" / "train.parquet")
    loaded = load_pairs(tmp_path / "in", "train")
    assert loaded.features["audio"] == FEATURES["audio"] and loaded.features["score"] == FEATURES["score"]
    assert loaded[0] == {
        "id": "7",
        "audio": {"bytes": None, "path": clips[0]},
        "text": "a",
        "score": 1.0,
        "extra": True,
    }
    table.rename_column("extra", "ratings").to_parquet(tmp_path / "in" / "train.parquet")
    with pytest.raises(ValueError, match="the column ratings must be List"):
        load_pairs(tmp_path / "in")
    table.rename_column("text", "caption").to_parquet(tmp_path / "in" / "train.parquet")
    with pytest.raises(ValueError, match="no column text; it has id, caption"):
        load_pairs(tmp_path / "in")


def test_loading_errors_say_what_to_do(tmp_path, rows):
    for name in (tmp_path / "none", "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="neither a dataset folder nor a dataset on the Hub"):
            load_pairs(name)
    save_dataset({"train": make_dataset(rows)}, tmp_path / "out")
    with pytest.raises(ValueError, match="no split test; it has train"):
        load_pairs(tmp_path / "out", "test")
    (tmp_path / "out" / "train.parquet").write_bytes(b"PAR1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "out" / "train.parquet").rename(tmp_path / "broken" / "train.parquet")
    with pytest.raises(ValueError, match="a file is broken"):
        load_pairs(tmp_path / "broken")
    with pytest.raises(ValueError, match="is no name for a split"):
        save_dataset({"my split": make_dataset(rows)}, tmp_path / "out2")


def test_check_rows_names_each_problem(rows, full_rows, clips):
    assert check_rows(make_dataset(full_rows)) == []
    assert check_rows(make_dataset(full_rows).select([2, 0])) == []
    gone = clips[0].replace("0.wav", "gone.wav")
    bad = [
        {**full_rows[0], "label": 1.5, "score": -0.1},
        {**full_rows[1], "text": " \u200b", "score": float("nan"), "ratings": [7, 11]},
        {**full_rows[2], "id": "1", "listener_ids": ["a"], "audio": gone},
        {**rows[2], "audio": {"bytes": b"RIFF", "path": "nowhere.wav"}},
        {**rows[2], "id": "3", "audio": {"bytes": None, "path": None}},
    ]
    expected = [
        "1: the id occurs 2 times",
        "0: the label 1.5 is not in -1 to 1",
        "0: the score -0.1 is not in 0 to 10",
        "1: the text is empty",
        "1: the score is not a number",
        "1: the rating 11 is not in 0 to 10",
        "1: 2 ratings by 1 listeners",
    ]
    files = [f"1: there is no file {gone}", "3: it has no sound"]
    assert check_rows(make_dataset(bad), check_files=False) == expected
    assert check_rows(make_dataset(bad)) == expected + files
    assert check_rows(make_dataset(bad).select([4, 2])) == ["1: 2 ratings by 1 listeners", *reversed(files)]


def test_unusable_audio_gives_reasons(tmp_path, clips):
    sound = Path(clips[2]).read_bytes()
    contents = {"empty.wav": b"", "page.wav": b"<html></html>", "cut.wav": sound[:20000]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    bad = [str(tmp_path / name) for name in (*contents, "gone.wav")]
    reasons = unusable_audio([*clips, *bad, *bad])
    assert list(reasons) == bad
    for reason, words in zip(reasons.values(), ["empty", "not audio", "truncated", "no such"], strict=True):
        assert words in reason


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A dog\n\n barks\t", "A dog barks"),
        ("A\u00a0dog\u2028barks\x85", "A dog barks"),
        ("\ufeffA d\u200bog\x00 bar\u00adks\x07", "A dog barks"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("Cafe\u200b\u0301", "Caf\u00e9"),
        ("Hund \ud83d bellt", "Hund bellt"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947, \u96e8", "\u0928\u092e\u0938\u094d\u0924\u0947, \u96e8"),
        (" \u200b\n", ""),
    ],
)
def test_clean_caption(text, cleaned):
    assert clean_caption(text) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_tables_are_read_alike(tmp_path):
    rows = [{"audio": "a,b.wav", "text": 'says "hi",\nthen leaves'}, {"audio": "c.wav", "text": " "}]
    (tmp_path / "t.csv").write_text('audio,text\n"a,b.wav","says ""hi"",\nthen leaves"\n\nc.wav, \n')
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, lines in (("t.csv", [3, 5]), ("t.jsonl", [1, 2])):
        columns, found = read_table(tmp_path / name)
        assert columns == ["audio", "text"]
        assert list(found) == list(zip(lines, rows, strict=True))
    assert find_column(columns, ["caption", "text"], "t.csv") == "text"
    assert find_column(columns, ["caption"], "t.csv", required=False) is None
    with pytest.raises(ValueError, match=r"t\.csv: no column caption or words; it has audio, text"):
        find_column(columns, ["caption", "words"], "t.csv")
