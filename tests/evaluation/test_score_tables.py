"""Tables of scores: every format, the keys, the strict join and the official merge."""

import csv
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_xacle.data.columns import REFERENCE_COLUMNS
from modeling_xacle.data.tables import read_table
from modeling_xacle.evaluation.score_tables import (
    join_tables,
    merge_as_official,
    read_score_table,
    text_table,
)

ROWS = [
    {"wav_file_name": "/a.wav", "text": "A dog", "score": 1.5},
    {"wav_file_name": "b.wav", "text": "Rain, then\na bell", "score": -0.25},
    {"wav_file_name": "c.wav", "text": 'A "cat"', "score": 7.0},
]


def write(path, rows):
    """A table in the format that the ending names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def scores(path, names, values, column="pred_score"):
    rows = [{"wav_file_name": name, column: value} for name, value in zip(names, values, strict=True)]
    return read_score_table(write(path, rows), [column])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_table(ending, tmp_path):
    table = read_score_table(write(tmp_path / f"t.{ending}", ROWS))
    assert table.key_columns == ("wav_file_name",)
    assert table.keys == [("a.wav",), ("b.wav",), ("c.wav",)]
    assert table.scores.dtype == np.float64
    assert table.scores.tolist() == [1.5, -0.25, 7.0]
    assert [row["text"] for row in table.rows] == [row["text"] for row in ROWS]


def test_parquet_streams_with_row_numbers_and_keeps_its_types(tmp_path):
    rows = [{"id": str(n), "score": float(n), "ratings": [n, n + 1]} for n in range(250)]
    columns, lines = read_table(write(tmp_path / "t.parquet", rows))
    assert columns == ["id", "score", "ratings"]
    assert list(lines) == list(enumerate(rows, 1))


def test_embedded_sounds_are_named_and_not_kept(tmp_path):
    rows = [{"audio": {"bytes": b"RIFF", "path": "/x/a.wav"}, "score": 1.0}]
    table = read_score_table(write(tmp_path / "t.parquet", rows))
    assert table.keys == [("x/a.wav",)]
    assert table.rows == [{"audio": "/x/a.wav", "score": 1.0}]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PAR1 and no more", "not a sound Parquet file"), (b"", "t.parquet")],
)
def test_a_broken_parquet_file_is_named(content, words, tmp_path):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_score_table(tmp_path / "t.parquet")


def test_columns_of_the_scores(tmp_path):
    table = write(tmp_path / "t.csv", [{"wave_file_name": "a", "average_semantic_alignement_score": 3, "score": 9}])
    assert read_score_table(table, REFERENCE_COLUMNS).scores.tolist() == [3]
    both = write(tmp_path / "u.csv", [{"path": "a", "score": 1, "pred_score": 2}])
    assert read_score_table(both).scores.tolist() == [2]
    labels = write(tmp_path / "v.csv", [{"path": "a", "label": 0.5}])
    with pytest.raises(ValueError, match=r"no column average_score or .*; it has path, label"):
        read_score_table(labels, REFERENCE_COLUMNS)


def test_default_keys(tmp_path):
    by_id = read_score_table(write(tmp_path / "t.jsonl", [{"id": 7, "audio": "a", "score": 1}]))
    assert (by_id.key_columns, by_id.keys) == (("id",), [("7",)])
    rows = [{"audio": "/a", "caption": text, "score": 1} for text in ("x", "y")]
    by_caption = read_score_table(write(tmp_path / "u.csv", rows))
    assert (by_caption.key_columns, by_caption.keys) == (("audio", "caption"), [("a", "x"), ("a", "y")])
    chosen = read_score_table(write(tmp_path / "v.csv", rows), key_columns=["caption"])
    assert chosen.keys == [("x",), ("y",)]
    with pytest.raises(ValueError, match="no column name; it has"):
        read_score_table(tmp_path / "v.csv", key_columns=["name"])
    nameless = write(tmp_path / "w.csv", [{"score": 1}])
    with pytest.raises(ValueError, match="name the columns that tell its rows apart"):
        read_score_table(nameless)


@pytest.mark.parametrize("value", ["high", "", "inf", "-inf"])
def test_what_is_no_number_is_named_with_its_line(value, tmp_path):
    table = write(tmp_path / "t.csv", [{"path": "a", "score": 1}, {"path": "b", "score": value}])
    with pytest.raises(ValueError, match=rf"t.csv, line 3: the score '{value}' is not a number"):
        read_score_table(table)


def test_rows_with_an_error_have_no_score(tmp_path):
    rows = [
        {"path": "a", "score": "", "status": "error: no such file"},
        {"path": "b", "score": "nan", "status": "ok"},
        {"path": "c", "score": "5", "status": "padded"},
    ]
    table = read_score_table(write(tmp_path / "t.csv", rows))
    np.testing.assert_array_equal(table.scores, [math.nan, math.nan, 5])


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.csv"):
        read_score_table(tmp_path / "gone.csv")


def test_join_is_in_the_order_of_the_reference(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"{number:05d}.wav" for number in range(3000)]
    values = generator.normal(size=(3, len(names)))
    tables = []
    for index, column in enumerate(values):
        order = generator.permutation(len(names))
        slash = "/" if index == 1 else ""
        tables.append(scores(tmp_path / f"{index}.csv", [slash + names[row] for row in order], column[order]))
    reference = scores(tmp_path / "r.csv", names, values[0], "average_score")
    np.testing.assert_array_equal(join_tables([*tables, reference]), [*values, values[0]])


def test_tables_keyed_by_different_columns_are_joined_by_sound_and_caption(tmp_path):
    plain = read_score_table(write(tmp_path / "p.csv", [{"audio": "/b", "score": 2}, {"audio": "a", "score": 1}]))
    with_id = [{"id": "y", "wav_file_name": "b", "score": 4}, {"id": "x", "wav_file_name": "a", "score": 3}]
    np.testing.assert_array_equal(
        join_tables([plain, read_score_table(write(tmp_path / "i.csv", with_id))]), [[2, 1], [4, 3]]
    )
    captions = [{"path": "a", "text": "x", "score": 1}, {"path": "a", "text": "y", "score": 2}]
    others = [{"id": 1, "audio": "a", "caption": "y", "score": 4}, {"id": 2, "audio": "a", "caption": "x", "score": 3}]
    first, second = (
        read_score_table(write(tmp_path / f"{index}.csv", rows)) for index, rows in enumerate((captions, others))
    )
    np.testing.assert_array_equal(join_tables([first, second]), [[2, 1], [4, 3]])
    only_id = read_score_table(write(tmp_path / "o.csv", [{"id": 1, "score": 1}]))
    with pytest.raises(ValueError, match=r"choose columns that all have: .*by audio; .*by id"):
        join_tables([plain, only_id])


def test_duplicate_missing_and_extra_rows_are_listed(tmp_path):
    names = [f"{number:02d}.wav" for number in range(20)]
    reference = scores(tmp_path / "r.csv", names, range(20))
    table = scores(tmp_path / "t.csv", [*names[12:], "new.wav", names[12]], range(10))
    with pytest.raises(ValueError) as error:
        join_tables([table, reference])
    message = str(error.value)
    assert "t.csv: 1 duplicate: 12.wav" in message
    assert "t.csv: 12 missing (in" in message
    assert "00.wav, 01.wav, 02.wav, 03.wav, 04.wav, 05.wav, 06.wav, 07.wav, 08.wav, 09.wav, ..." in message
    assert "10.wav" not in message
    assert "t.csv: 1 extra (not in" in message
    assert "new.wav" in message
    with pytest.raises(ValueError, match=r"r.csv: 1 duplicate: 00.wav"):
        join_tables([reference, scores(tmp_path / "r.csv", [*names, names[0]], range(21))])


def test_official_merge_against_a_double_loop(tmp_path):
    generator = np.random.default_rng(1)
    left, right = ([f"{number}.wav" for number in generator.integers(40, size=60)] for _ in range(2))
    prediction = scores(tmp_path / "p.csv", left, range(60))
    reference = scores(tmp_path / "r.csv", right, range(100, 160))
    merged = merge_as_official(prediction, reference)
    pairs = [(i, 100 + j) for i in range(60) for j in range(60) if left[i] == right[j]]
    np.testing.assert_array_equal(merged.scores.T, pairs)
    np.testing.assert_array_equal(merged.prediction_rows, merged.scores[0])
    np.testing.assert_array_equal(merged.reference_rows + 100, merged.scores[1])
    assert merged.num_missing == sum(name not in left for name in right)
    assert merged.num_extra == sum(name not in right for name in left)
    assert merged.num_multiplied == len(pairs) - len(set(left) & set(right))


def test_official_merge_of_nothing(tmp_path):
    merged = merge_as_official(scores(tmp_path / "p.csv", ["a"], [1]), scores(tmp_path / "r.csv", ["b"], [1]))
    assert merged.scores.shape == (2, 0)
    assert (merged.num_missing, merged.num_extra, merged.num_multiplied) == (1, 1, 0)


def test_text_table():
    assert text_table(["name", "N"], [["a", "10"], ["longer", "1"]]).splitlines() == [
        "name     N",
        "a       10",
        "longer   1",
    ]
