"""Tables are written in the format that their suffix names, and read again as they were."""

import json

import numpy as np
import pytest

from modeling_xacle.data.tables import FORMATS, read_table, write_table
from modeling_xacle.evaluation.calibrate import ScoreCalibration, calibrate_table, save_calibration
from modeling_xacle.evaluation.score_tables import read_score_table

ROWS = [
    {"id": "a", "text": 'Rain, "heavy"\tand wind', "score": 2.5, "ratings": [1, 4], "notes": None},
    {"id": "b", "text": "Straße\nin Tōkyō", "score": 7.25, "ratings": [7, 8], "notes": "padded"},
]


def rows_of(path):
    return [row for _, row in read_table(path)[1]]


@pytest.fixture(params=FORMATS)
def suffix(request):
    return request.param


def test_rows_come_back_as_they_were(suffix, tmp_path):
    path = tmp_path / f"t{suffix.upper()}"
    write_table(path, ROWS)
    if suffix in (".jsonl", ".parquet"):
        assert rows_of(path) == ROWS
    else:
        found = [{**row, "score": float(row["score"]), "ratings": json.loads(row["ratings"])} for row in rows_of(path)]
        assert found == [{**row, "notes": row["notes"] or ""} for row in ROWS]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_column_that_the_first_row_lacks_is_kept(suffix, tmp_path):
    write_table(tmp_path / f"t{suffix}", [{"id": "a"}, {"id": "b", "notes": "cut"}])
    assert [row["notes"] for row in rows_of(tmp_path / f"t{suffix}")][1] == "cut"


def test_breaks_of_lines_stay_within_their_cells(suffix, tmp_path):
    rows = [{"id": "a", "text": text} for text in ("A dog\rbarks", "a\nbell", "rain\r\nfalls", "a, b")]
    write_table(tmp_path / f"t{suffix}", rows)
    assert rows_of(tmp_path / f"t{suffix}") == rows


def test_numbers_that_parquet_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"t\.parquet: Parquet cannot hold"):
        write_table(tmp_path / "t.parquet", [{"id": 2**70}])


def test_the_path_stands_for_the_bytes_of_a_sound(suffix, tmp_path):
    write_table(tmp_path / f"t{suffix}", [{"audio": {"bytes": b"RIFF", "path": "a.wav"}, "score": 1.0}])
    assert rows_of(tmp_path / f"t{suffix}")[0]["audio"] == "a.wav"


def test_a_column_of_several_kinds_is_refused_in_parquet_with_the_remedy(tmp_path):
    rows = [{"id": "a", "score": 1.0}, {"id": "b", "score": "none"}]
    with pytest.raises(ValueError, match=r"t\.parquet: Parquet cannot hold .*; write \.csv, \.tsv, \.jsonl instead"):
        write_table(tmp_path / "t.parquet", rows)
    assert not list(tmp_path.iterdir())


def test_a_calibrated_table_is_read_again(suffix, tmp_path):
    (tmp_path / "in.csv").write_text("id,text,score,status\na,x,1.0,ok\nb,y,,error: gone\n")
    assert calibrate_table(ScoreCalibration("affine", 2, 1), tmp_path / "in.csv", tmp_path / f"out{suffix}") == 2
    np.testing.assert_array_equal(read_score_table(tmp_path / f"out{suffix}").scores, [3, np.nan])


def test_an_ensemble_is_read_again(suffix, tmp_path, xacle):
    for name, score in (("a", 1.0), ("b", 4.0)):
        write_table(
            tmp_path / f"{name}.jsonl", [{"id": row, "pred_score": score + row, "tags": [row]} for row in (0, 1)]
        )
    xacle("ensemble", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "-o", tmp_path / f"out{suffix}")
    table = read_score_table(tmp_path / f"out{suffix}")
    assert table.scores.tolist() == [2.5, 3.5] and list(table.rows[0]) == ["id", "tags", "score", "signature"]


@pytest.mark.parametrize("name", ["out.xlsx", "out"])
def test_an_unknown_format_is_refused_before_anything_is_read(name, tmp_path, xacle):
    save_calibration(ScoreCalibration("affine", 2, 1), tmp_path / "map.json")
    for command in (
        ["calibrate", "gone.csv", "gone.csv", "--apply", "gone.csv"],
        ["ensemble", "gone.csv", "gone.csv"],
        ["matrix", "gone.wav", "--texts", tmp_path / "map.json", "--model", tmp_path / "gone"],
    ):
        message = xacle(*command, "-o", tmp_path / name, expect=1)
        assert f"{name}: write to a file that ends in .csv, .tsv, .jsonl, .parquet." in " ".join(message.split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.json"]
