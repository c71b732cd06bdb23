"""The `xacle` command."""

import csv
import io
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from conftest import EXPECTED, PARITY, ROOT

from modeling_xacle import __version__

CLIP = str(PARITY / "wav" / "b_16k_3s.wav")
SCORE = next(
    pair["score_0_10"] for pair in EXPECTED["pairs"] if (pair["wav"], pair["text"]) == ("b_16k_3s.wav", "beep")
)


def write_table(path, rows, columns=("wav_file_name", "text")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["convert", "init", "score"]),
        (["convert"], ["tmu", "beats"]),
        (["convert", "tmu"], ["--llm", "--beats", "--output", "--revision"]),
        (["convert", "beats"], ["--output"]),
        (["init"], ["--beats", "--llm", "--seed"]),
        (["fit-ensemble"], ["--model", "--method", "zscore", "gate,", "--unseen-generators", "--copy-members"]),
        (["score"], ["--audio", "--text", "--model", "--window-seconds", "--json", "--strict", "Exit codes"]),
    ],
)
def test_help(command, words, xacle):
    text = xacle(*command, "--help")
    assert all(word in text for word in words)


def test_convert_then_score_then_json(tmp_path, xacle):
    model = tmp_path / "model"
    written = xacle("convert", "tmu", PARITY, "--llm", PARITY / "llm", "--beats", PARITY / "beats.pt", "-o", model)
    assert written.strip() == str(model)
    assert float(xacle("score", "--audio", CLIP, "--text", "beep", "--model", model)) == pytest.approx(SCORE, abs=0.006)
    result = json.loads(xacle("score", "--audio", CLIP, "--text", "beep", "--model", model, "--json"))
    assert result["score"] == pytest.approx(SCORE, abs=1e-4)
    assert result["notes"] == ["padded: 3.1 s to 10 s"]


def test_several_captions(tmp_path, xacle):
    lines = xacle("score", "--audio", CLIP, "--text", "beep", "--text", "A dog").splitlines()
    assert [line.split("\t")[1] for line in lines] == ["beep", "A dog"]


def test_init_and_convert_beats(tmp_path, xacle):
    xacle("convert", "beats", PARITY / "beats.pt", "-o", tmp_path / "beats")
    xacle("init", "--beats", tmp_path / "beats", "--llm", PARITY / "llm", "-o", tmp_path / "model", "--seed", 5)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training_stage"] == 0


def test_table(model_folder, tmp_path, xacle):
    pairs = EXPECTED["pairs"]
    rows = [("/" + pair["wav"], pair["text"], index) for index, pair in enumerate(pairs)]
    table = write_table(tmp_path / "pairs.csv", rows, ("wav_file_name", "text", "key"))
    output = tmp_path / "scores.csv"
    message = xacle("score", table, "--audio-dir", PARITY / "wav", "-o", output, "--model", model_folder)
    assert message.strip() == f"{len(pairs)} pairs scored: {output}"
    result = read_table(output)
    assert [(row["wav_file_name"], row["text"], int(row["key"])) for row in result] == rows
    for row, pair in zip(result, pairs, strict=True):
        assert float(row["score"]) == pytest.approx(pair["score_0_10"], abs=1e-4)
    assert result[8]["status"] == "cut"
    assert result[8]["notes"] == "resampled: 44100 Hz to 16000 Hz; mixed down: 2 channels to 1; cut: 12.3 s to 10 s"


def test_json_lines(tmp_path, xacle):
    table = tmp_path / "pairs.jsonl"
    table.write_text(json.dumps({"audio": CLIP, "text": "beep"}) + "\n" + json.dumps({"audio": 7, "text": "beep"}))
    message = xacle("score", table, "-o", tmp_path / "scores.csv", expect=3)
    assert "1 rows have no score" in message
    good, bad = read_table(tmp_path / "scores.csv")
    assert good["status"] == "padded"
    assert (bad["audio"], bad["score"]) == ("7", "")
    assert bad["status"] == f"error: {tmp_path / '7'}: no such audio file."


def test_a_table_on_standard_input(tmp_path, xacle, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"clip,words\n{CLIP},beep\n".encode())))
    columns = ["--audio-column", "clip", "--text-column", "words"]
    report = json.loads(xacle("score", "-", *columns, "-o", tmp_path / "scores.tsv", "--signature", "--json"))
    assert (report["rows"], report["counts"]["padded"]) == (1, 1)
    header, row = (tmp_path / "scores.tsv").read_text().splitlines()
    assert header.split("\t") == ["clip", "words", "score", "status", "notes", "signature"]
    assert row.endswith(report["signature"])


def test_another_run_under_the_same_output(tmp_path, xacle):
    table = write_table(tmp_path / "pairs.csv", [(CLIP, "beep")], ("audio", "text"))
    command = ["score", table, "-o", tmp_path / "scores.csv"]
    xacle(*command)
    xacle(*command)
    assert "another scorer.window_seconds" in xacle(*command, "--window-seconds", 5, expect=1)
    xacle(*command, "--window-seconds", 5, "--windows", "--restart")
    [row] = read_table(tmp_path / "scores.csv")
    assert row["status"] == "windowed" and len(json.loads(row["windows"])) == 1


@pytest.mark.parametrize("size", ["0", "few", "1.5"])
def test_a_batch_size_that_is_none(size, tmp_path, xacle):
    message = xacle("score", "t.csv", "-o", "o.csv", "--batch-size", size, expect=2)
    assert f"--batch-size {size}: give a whole" in " ".join(message.split())


def test_strict_stops_at_the_first_bad_row(tmp_path, xacle):
    rows = [(CLIP, "beep")] * 8 + [(CLIP, " ")]
    table = write_table(tmp_path / "pairs.csv", rows, ("audio", "caption"))
    message = xacle("score", table, "-o", tmp_path / "scores.csv", "--batch-size", 3, "--strict", expect=1)
    assert message.splitlines()[-1].startswith(f"error: {table}, line 10: The caption is empty (' ')")


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (
            ("file", "text"),
            ("a.wav", "b"),
            "no column wav_file_name or wave_file_name or audio or file_name or path; it has file, text",
        ),
        (("audio", "words"), ("a.wav", "b"), "no column text or caption"),
        (("audio", "text", "score"), ("a.wav", "b", 5), "already has the column score"),
        (("audio", "text"), ("a.wav",), "line 2: 1 fields, but the header has 2"),
        (("audio", "text"), ("a.wav", "b", "c"), "line 2: 3 fields, but the header has 2"),
    ],
)
def test_tables_that_cannot_be_scored(columns, row, message, tmp_path, xacle):
    table = write_table(tmp_path / "pairs.csv", [row], columns)
    assert message in xacle("score", table, "-o", tmp_path / "scores.csv", expect=1)


@pytest.mark.parametrize("content", [b"", "audio,text\na.wav,caf\u00e9\n".encode("latin-1"), b'audio,text\na.wav,"b\n'])
def test_files_that_are_no_table(content, tmp_path, xacle):
    (tmp_path / "pairs.csv").write_bytes(content)
    message = xacle("score", tmp_path / "pairs.csv", "-o", tmp_path / "scores.csv", expect=1)
    assert message.splitlines()[-1].startswith(f"error: {tmp_path / 'pairs.csv'}")


@pytest.mark.parametrize(
    "arguments", [[], ["--audio", CLIP], ["--text", "a"], ["t.csv"], ["t.csv", "-o", "o.csv", "--text", "a"]]
)
def test_incomplete_arguments(arguments, xacle):
    assert "either --audio and --text, or a table and --output" in xacle("score", *arguments, expect=2)


AS_INSTALLED = """
import sys, sysconfig
sys.argv = [sysconfig.get_path("scripts") + "/xacle", *sys.argv[1:]]
from modeling_xacle.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "datasets", "matplotlib", "scipy", "pandas", "numpy"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "How well does a sound match a caption?"),
        (["--version"], 0, f"modeling-xacle {__version__}"),
        (["score", "--help"], 0, "--window-seconds"),
        (["convert", "tmu", "--help"], 0, "--training-stage"),
        (["calibrate", "--help"], 0, "isotonic"),
        (["score", "--nonsense"], 2, "No such option"),
        (["scores"], 2, "No such command"),
        (["score", "--text", "a"], 2, "give either --audio and --text, or a table and --output"),
        (["compare", "a.csv", "--reference", "r.csv"], 2, "give two tables of predictions or more"),
        (["calibrate", "-o", "map.json"], 2, "give either a table of predictions and its reference, or --load"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_do_not_wait_for_pytorch(arguments, code, words):
    command = [sys.executable, "-c", AS_INSTALLED, *arguments]
    environment = os.environ | {"COLUMNS": "300", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert "AssertionError" not in done.stderr
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize("device", ["foo", "cuda:7"])
def test_a_device_that_is_not_there(device, xacle):
    message = xacle("score", "--audio", CLIP, "--text", "a", "--device", device, expect=2)
    assert f"--device {device}" in " ".join(message.split())


def test_windows_need_json(xacle):
    assert "goes with" in xacle("score", "--audio", CLIP, "--text", "a", "--windows", expect=2)


def test_a_users_mistake_ends_in_one_line(tmp_path, xacle):
    assert xacle("convert", "beats", "gone.pt", "-o", tmp_path / "out", expect=1) == "error: gone.pt: no such file.\n"
    assert xacle("score", "--audio", CLIP, "--text", "a", "--model", tmp_path, expect=1).startswith("error: ")


def test_the_installed_command_is_this_one():
    """In a process of its own: results alone on stdout, one line on stderr for a mistake."""
    [command] = entry_points(group="console_scripts", name="xacle")
    assert command.value == "modeling_xacle.cli:main"
    code = "import sys; from modeling_xacle.cli import main; sys.argv[0] = 'xacle'; main()"
    arguments = [sys.executable, "-c", code, "score", "--audio", CLIP, "--text"]
    good, bad = (
        subprocess.run([*arguments, text], capture_output=True, text=True, timeout=120) for text in ("beep", "")
    )
    assert good.returncode == 0
    assert -20 < float(good.stdout) < 20  # of a sound unlike all that the bundled model knows
    assert bad.returncode == 1
    assert bad.stdout == ""
    assert "Traceback" not in bad.stderr
    assert bad.stderr.splitlines()[-1].startswith("error: The caption is empty")
