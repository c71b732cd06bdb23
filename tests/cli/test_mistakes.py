"""Mistakes in a command: each is told in one line that names it, before anything is computed or written."""

import os
import shutil
import sys

import pytest
from conftest import PARITY

from modeling_xacle.cli.endings import plain_endings

CLIP = PARITY / "wav" / "b_16k_3s.wav"
ONE = ["--audio", CLIP, "--text", "beep"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in: a clip, a table of it, predictions, ratings, and a folder of sounds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    shutil.copy(CLIP, tmp_path / "sounds" / "clip.wav")
    (tmp_path / "pairs.csv").write_text("audio,text\nsounds/clip.wav,beep\n")
    for name, column in (("scores.csv", "pred_score"), ("ratings.csv", "average_score")):
        rows = [f"{row}.wav,{row + (column == 'pred_score' and row % 2)}" for row in range(6)]
        (tmp_path / name).write_text("\n".join([f"wav_file_name,{column}", *rows]) + "\n")
    rows = [f"{row}.wav,{row + 1e-9}" for row in range(5)]
    (tmp_path / "rounded.csv").write_text("\n".join(["wav_file_name,score", *rows, "5.wav,nan"]) + "\n")
    (tmp_path / "rated.csv").write_text((tmp_path / "ratings.csv").read_text().replace("average_score", "score"))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["score", *ONE, "--window-seconds", "-1"],
        ["score", *ONE, "--hop-seconds", "0"],
        ["score", "pairs.csv", "-o", "o.csv", "--batch-size", "0"],
        ["score", "pairs.csv", "-o", "o.csv", "--batch-size", "9223372036854775808"],
        ["score", *ONE, "--device", "meta"],
        ["rank", CLIP, "--text", "a", "--batch-size", "9223372036854775808"],
        ["evaluate", "scores.csv", "ratings.csv", "--seed", "-1"],
        ["evaluate", "scores.csv", "ratings.csv", "--resamples", "1" + "0" * 100],
        ["init", "--beats", "a", "--llm", "b", "-o", "c", "--seed", "1" + "0" * 100],
    ],
)
def test_numbers_out_of_range_are_mistakes_in_the_command(command, here, xacle):
    assert next(part for part in command[::-1] if str(part).startswith("--")) in xacle(*command, expect=2)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["score", "pairs.csv", "-o", "o.csv", "--split", "test"], "pairs.csv: is one table"),
        (["score", "sounds", "-o", "o.csv"], "sounds: holds no dataset"),
        (["score", "pairs.csv", "-o", "pairs.csv"], "would be written over the input pairs.csv"),
        (["calibrate", "scores.csv", "ratings.csv", "-o", "scores.csv"], "would be written over the input scores.csv"),
        (["calibrate", "scores.csv", "ratings.csv", "-o", "m.png", "--diagram", "m.png"], "two outputs"),
        (["ensemble", "scores.csv", "-o", "e.csv", "--save-weights", "scores.csv"], "over the input scores.csv"),
        (["matrix", "sounds/clip.wav", "--texts", "pairs.csv", "-o", "pairs.csv"], "over the input pairs.csv"),
        (["matrix", "sounds/clip.wav", "--texts", "pairs.csv", "--heat-map", "linked.png"], "over the input"),
        (["evaluate", "scores.csv", "ratings.csv", "-o", "."], "would be written over the input scores.csv"),
        (["evaluate", "ratings.csv", "ratings.csv"], "no column pred_score"),
        (["evaluate", "rounded.csv", "ratings.csv"], "compared with themselves"),
        (["ensemble", "scores.csv", "rated.csv", "--reference", "ratings.csv", "-o", "e.csv"], "with themselves"),
        (["submit", "scores.csv", "-o", "scores.csv"], "over the input scores.csv"),
        (
            ["evaluate", "ratings.csv", "ratings.csv", "--prediction-column", "average_score"],
            "compared with themselves",
        ),
        (["calibrate", "scores.csv", "ratings.csv", "-o", os.devnull], "is not a file that can be replaced"),
    ],
)
def test_what_would_be_lost_or_mean_nothing_is_refused(command, said, here, xacle):
    (here / "linked.png").symlink_to(here / "sounds" / "clip.wav")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    message = xacle(*command, expect=1)
    assert said in message and len(message.splitlines()) == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_message_is_one_line_that_a_terminal_can_show(here, xacle):
    (here / "odd.csv").write_text("a\x07\x1b[31mb," + "c" * 5000 + "\n1,2\n")
    message = xacle("score", "odd.csv", "-o", "o.csv", expect=1)
    assert message.isascii() and len(message) < 1200 and "\\x07\\x1b[31m" in message


def test_standard_input_is_called_that(here, xacle, monkeypatch):
    read, write = os.pipe()
    os.write(write, b"audio,text\n\xff,a\n")
    os.close(write)
    with open(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert xacle("score", "-", "-o", "o.csv", expect=1).startswith("error: standard input: not UTF-8")


def test_deep_json_and_endless_integers_name_their_line(here, xacle):
    for content in ("[" * 100_000, '{"audio": "a", "text": ' + "1" * 5000 + "}"):
        (here / "odd.jsonl").write_text('{"audio": "a", "text": "b"}\n' + content + "\n")
        assert "odd.jsonl, line 2: not JSON" in xacle("score", "odd.jsonl", "-o", "o.csv", expect=1)


def test_long_cells_are_read_and_half_characters_reach_parquet(here, xacle):
    (here / "odd.jsonl").write_text(
        '{"audio": "sounds/clip.wav", "text": "b", "more": "' + "x" * 200_000 + '\\ud83d"}\n'
    )
    for output in ("o.csv", "o.parquet"):
        xacle("score", "odd.jsonl", "-o", output)
        xacle("score", output, "-o", f"again-{output}", "--prefix", "again_")


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_process_whose_partner_ended_says_so(how, xacle, monkeypatch):
    def app():
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:1] Read error [127.0.0.1]:1: Connection {how} by peer.")

    monkeypatch.setattr(sys.modules["modeling_xacle.cli.main"], "app", app)
    assert xacle("score", expect=1).startswith("error: another process of this run has ended")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("two rows:\n  row 1 \x1b[2J"), 1, "error: two rows:\n  row 1 \\x1b[2J\n"),
        (RuntimeError("Connection reset by peer"), 1, "error: another process of this run has ended"),
        (KeyboardInterrupt(), 130, "stopped: "),
    ],
)
def test_scripts_end_as_commands_do(error, code, told, capsys):
    with pytest.raises(SystemExit) as end, plain_endings():
        raise error
    assert end.value.code == code and capsys.readouterr().err.startswith(told)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="out of range"), plain_endings():
        raise RuntimeError("out of range")
