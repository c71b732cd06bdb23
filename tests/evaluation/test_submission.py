"""Submissions: what is refused, what is warned of, and the bytes of the ZIP."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from modeling_xacle.evaluation.submission import (
    check_description,
    describe_systems,
    pack,
    read_names,
    read_scores,
    submit_tables,
)

NAMES = [f"{number:05d}.wav" for number in range(10500, 13500)]
FIELDS = {
    "name": "ours",
    "authors": ["A. Author", "B. Äuthor"],
    "contact": "a@example.org",
    "external_data": [],
    "models": ["BEATs"],
}
WHO = ["--author", "A. Author", "--contact", "a@example.org", "--pretrained", "BEATs"]


def write_table(path, rows, columns=("wav_file_name", "pred_score")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def make_scores(names=NAMES, seed=0):
    return list(zip(names, np.random.default_rng(seed).uniform(0, 10, len(names)).tolist(), strict=True))


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "scores.csv", make_scores())


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_submission_holds_every_score_exactly(table, tmp_path):
    files, warnings = submit_tables([table], [FIELDS], tmp_path / "ours.zip")
    assert (files, warnings) == (["ours.csv", "ours.yaml"], [])
    packed = read_zip(tmp_path / "ours.zip")
    header, *rows = csv.reader(io.StringIO(packed["ours.csv"]))
    assert header == ["wav_file_name", "pred_score"]
    assert [(name, float(score)) for name, score in rows] == make_scores()
    assert yaml.safe_load(packed["ours.yaml"]) == FIELDS


def test_the_bytes_repeat(table, tmp_path, monkeypatch):
    submit_tables([table], [FIELDS], tmp_path / "first.zip")
    monkeypatch.setattr("time.time", lambda: 2e9)
    shuffled = write_table(tmp_path / "other.csv", make_scores()[::-1])
    reference = write_table(tmp_path / "test.csv", [[name, "words"] for name in NAMES], ("wav_file_name", "text"))
    submit_tables([shuffled], [dict(reversed(FIELDS.items()))], tmp_path / "second.zip", reference)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_a_list_sets_the_clips_and_their_order(tmp_path):
    table = write_table(tmp_path / "s.csv", [("/b", 1, "x"), ("a", 2.5, "y")], ("audio", "score", "text"))
    reference = write_table(tmp_path / "list.csv", [["/a"], ["b"]], ["wave_file_name"])
    assert read_names(reference) == ["a", "b"]
    scores, warnings = read_scores(table, ["a", "b"])
    assert (list(scores.items()), warnings) == ([("a", 2.5), ("b", 1.0)], [])
    with pytest.raises(ValueError, match=r"list\.csv: 1 names occur more than once: a\."):
        read_names(write_table(reference, [["a"], ["/a"], ["b"]], ["wave_file_name"]))


BROKEN = {
    "too few": (lambda rows: rows[1:], "2999 rows, but the test set has 3000"),
    "too many": (lambda rows: [*rows, ("x.wav", 1)], "3001 rows"),
    "duplicate": (lambda rows: [rows[1], *rows[1:]], r"1 clips that occur more than once: 10501\.wav"),
    "no wav": (
        lambda rows: [("a/1.wav", 1), ("10501", 2), *rows[2:]],
        r"2 names that are .* WAV files: a/1\.wav, 10501",
    ),
    "NaN": (lambda rows: [("10500.wav", "nan"), *rows[1:]], r"1 scores that are no finite numbers: 10500\.wav"),
    "infinite": (lambda rows: [("10500.wav", "-inf"), *rows[1:]], "no finite numbers"),
    "empty": (lambda rows: [("10500.wav", ""), *rows[1:]], "no finite numbers"),
    "words": (lambda rows: [(name, "good") for name, _ in rows], r"3000 scores .* 10509\.wav, \.\.\."),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_tables_are_refused_and_nothing_is_written(change, message, tmp_path):
    table = write_table(tmp_path / "scores.csv", change(make_scores()))
    with pytest.raises(ValueError, match=message):
        submit_tables([table], [FIELDS], tmp_path / "ours.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    table = write_table(tmp_path / "scores.csv", [("a.wav", 1), ("a.wav", 2), ("c.wav", "nan")])
    with pytest.raises(ValueError) as error:
        read_scores(table, ["a.wav", "b.wav"])
    assert str(error.value) == (
        f"{table}: 1 clips that occur more than once: a.wav; 1 clips of the list without a score: b.wav; "
        "1 clips that are not in the list: c.wav; 1 scores that are no finite numbers: c.wav."
    )


@pytest.mark.parametrize("columns", [("file", "pred_score"), ("wav_file_name", "rating")])
def test_a_header_without_names_or_scores_is_refused(columns, tmp_path):
    with pytest.raises(ValueError, match="no column"):
        read_scores(write_table(tmp_path / "scores.csv", make_scores(), columns))


def test_strange_scores_are_warned_of(tmp_path):
    table = write_table(tmp_path / "scores.csv", [("a.wav", 10.5), ("b.wav", 3), ("c.wav", -1)])
    _, [warning] = read_scores(table, ["a.wav", "b.wav", "c.wav"])
    assert warning == f"{table}: 2 scores are outside 0-10 (all: -1 to 10.5): a.wav, c.wav."
    constant = write_table(tmp_path / "constant.csv", [("a.wav", 5), ("b.wav", 5.0)])
    _, [warning] = read_scores(constant, ["a.wav", "b.wav"])
    assert "all scores are the same" in warning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "no field name"),
        ({"models": None, "contact": None}, "no field contact; no field models"),
        ({"author": "me"}, r"unknown field author\. The fields of a system are name, authors"),
        ({"authors": []}, "authors is empty"),
        ({"models": [1]}, r"models must be a list of texts, got \[1\]"),
        ({"contact": " "}, "contact must be a text"),
        ({"name": "a/b"}, "the name 'a/b' cannot name a file"),
        ({"name": ".."}, "cannot name a file"),
    ],
)
def test_broken_descriptions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_description({**FIELDS, **change})


def test_descriptions_from_options_and_files(tmp_path):
    options = {"authors": ["A"], "contact": "a@b", "external_data": None, "models": ["BEATs"]}
    one, two = describe_systems(options, ["x", "y"], [], 2)
    assert one == {"name": "x", "authors": ["A"], "contact": "a@b", "external_data": [], "models": ["BEATs"]}
    assert two == {**one, "name": "y"}
    file = tmp_path / "system.yaml"
    file.write_text("authors: A\ncontact: a@b\nexternal_data: [AudioCaps]\nmodels: [BEATs]\n")
    assert [system["name"] for system in describe_systems({}, ["x", "y"], [file], 2)] == ["x", "y"]
    assert describe_systems({}, ["x"], [file], 1)[0]["authors"] == ["A"]
    with pytest.raises(ValueError, match="has the field contact, which is also an option"):
        describe_systems({"contact": "c"}, ["x"], [file], 1)
    with pytest.raises(ValueError, match="the options: no field name"):
        describe_systems(options, [], [], 1)
    for names, files in [(["x"], []), (["x", "y"], [file] * 3)]:
        with pytest.raises(ValueError, match="2 tables of scores need as many names"):
            describe_systems(options, names, files, 2)


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "not YAML"), ("- a", "must hold fields"), ("", "and holds none")]
)
def test_files_that_describe_nothing(content, message, tmp_path):
    (tmp_path / "system.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        describe_systems({}, ["x"], [tmp_path / "system.yaml"], 1)


def test_several_systems_with_names_of_their_own(table, tmp_path):
    files, _ = submit_tables([table] * 2, [FIELDS, {**FIELDS, "name": "theirs"}], tmp_path / "all.zip")
    assert files == ["ours.csv", "ours.yaml", "theirs.csv", "theirs.yaml"] == list(read_zip(tmp_path / "all.zip"))
    with pytest.raises(ValueError, match="a name of its own: ours"):
        submit_tables([table] * 2, [FIELDS, {**FIELDS, "name": "OURS"}], tmp_path / "all.zip")
    with pytest.raises(ValueError, match="No system"):
        pack([], tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"a \.zip file"):
        submit_tables([table], [FIELDS], tmp_path / "all.tar")


def test_an_earlier_submission_stays_until_the_new_one_is_whole(table, tmp_path, monkeypatch):
    submit_tables([table], [FIELDS], tmp_path / "ours.zip")
    before = (tmp_path / "ours.zip").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        submit_tables([table], [{**FIELDS, "name": "other"}], tmp_path / "ours.zip")
    assert (tmp_path / "ours.zip").read_bytes() == before


def test_command(table, tmp_path, xacle):
    output = tmp_path / "ours.zip"
    assert xacle("submit", table, "--name", "ours", *WHO, "-o", output) == f"ours.csv, ours.yaml: {output}\n"
    result = json.loads(xacle("submit", table, "--name", "ours", *WHO, "-o", output, "--json"))
    assert result == {"output": str(output), "files": ["ours.csv", "ours.yaml"], "warnings": []}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(FIELDS))
    xacle("submit", table, "--description", tmp_path / "s.yaml", "-o", tmp_path / "again.zip")
    assert list(read_zip(tmp_path / "again.zip")) == ["ours.csv", "ours.yaml"]


def test_command_warns_and_refuses(tmp_path, xacle, capsys):
    reference = write_table(tmp_path / "list.csv", [["a"], ["b"]], ["wav_file_name"])
    table = write_table(tmp_path / "scores.csv", [("a", 11), ("b", 1)])
    arguments = ["submit", table, "--reference", reference, *WHO, "-o", tmp_path / "ours.zip"]
    assert "1 scores are outside 0-10" in json.loads(xacle(*arguments, "--name", "ours", "--json"))["warnings"][0]
    assert "need as many names, got 2" in xacle(*arguments, "--name", "a", "--name", "b", expect=1)
    assert "no field name" in xacle(*arguments, expect=1)
    assert "3000" in xacle("submit", table, "--name", "a", *WHO, "-o", tmp_path / "x.zip", expect=1)


def test_help(xacle):
    text = xacle("submit", "--help")
    assert all(word in text for word in ["--reference", "--name", "--description", "--output", "--json"])
