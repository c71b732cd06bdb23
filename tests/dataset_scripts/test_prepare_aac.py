"""`dataset_scripts/prepare_aac.py` on small corpora in the layouts of AudioCaps, VGGSound and plain tables."""

import csv
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run_script

from modeling_xacle.data.pairs import check_rows, load_pairs

SCRIPT = ROOT / "dataset_scripts" / "prepare_aac.py"
AUDIOCAPS_HEADER = ["audiocap_id", "youtube_id", "start_time", "caption"]


run = partial(run_script, SCRIPT)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_clips(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.sin(np.arange(1600) / 9), 16000)
    return folder


def read_report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def clips_by_text(dataset):
    return {row["text"]: Path(row["audio"]["path"]).name for row in dataset}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_audiocaps_names_and_splits(tmp_path, out):
    rows = [
        (91139, "r1nicOVtvkQ", 130, "A woman talks nearby as water pours"),
        (58146, "--0w1YA1Hm4", 30, "Multiple clanging and clanking sounds"),
        (11542, "YJHmBKwQ3Bk", 30, "A power tool sprays"),
        (86241, "sl_7ZyLxMIU", 0, "A man speaking, crunching"),
        (2, "abcdefghij_", 9, "A dog howls"),
        (3, "gone_gone__", 10, "Thunder"),
        (4, "wrong_start", 10, "Birds sing"),
    ]
    clips = ["91139.wav", "Y--0w1YA1Hm4.flac", "sub/YJHmBKwQ3Bk_30.wav", "sl_7ZyLxMIU_0.000_10.000.wav"]
    write_clips(tmp_path / "clips", *clips, "Yabcdefghij__000009.wav", "wrong_start_20.wav", "stray.wav")
    write_csv(tmp_path / "audiocaps_train.csv", AUDIOCAPS_HEADER, rows)
    write_csv(tmp_path / "val.csv", AUDIOCAPS_HEADER, [(5, "r1nicOVtvkQ", 130, "Water pours"), rows[1]])
    tables = ["--audiocaps", tmp_path / "audiocaps_train.csv", "--audiocaps", tmp_path / "val.csv"]
    code, stdout, stderr = run(*tables, "--audiocaps-clips", tmp_path / "clips", "-o", out)
    assert code == 0 and "train: 5 pairs of audiocaps" in stdout and "validation: 1 pairs" in stdout
    pairs = load_pairs(out)
    expected = [*clips, "Yabcdefghij__000009.wav"]
    assert clips_by_text(pairs["train"]) == {row[3]: Path(clip).name for row, clip in zip(rows, expected, strict=False)}
    assert pairs["train"]["id"][:2] == ["audiocaps/91139", "audiocaps/58146"]
    assert check_rows(pairs["train"]) == check_rows(pairs["validation"]) == []
    report = read_report(out)
    assert report["left_out"] == {"no clip": ["audiocaps/3", "audiocaps/4", "audiocaps/5"]}
    assert report["clips_without_a_caption"]["audiocaps"]["count"] == 2
    assert [Path(path).name for path in report["clips_in_several_splits"]] == ["Y--0w1YA1Hm4.flac"]
    assert "3 left out, no clip" in stderr and "audiocaps/4" in stderr


def test_without_a_validation_split_it_says_how_to_get_one(tmp_path, out):
    write_clips(tmp_path / "clips", "1.wav", "2.wav")
    for name, id in (("train.csv", 1), ("val.csv", 2)):
        write_csv(tmp_path / name, AUDIOCAPS_HEADER, [(id, "abcdefghij_", 9, "Rain")])
    train = ["--audiocaps", tmp_path / "train.csv", "--audiocaps-clips", tmp_path / "clips", "-o", out]
    assert "no validation split, which run_stage.py needs: give such a table too (--audiocaps val.csv" in run(*train)[2]
    assert "no validation split" not in run(*train, "--audiocaps", tmp_path / "val.csv")[2]
    assert set(load_pairs(out)) == {"train", "validation"}


def test_vggsound_ids(tmp_path, out):
    write_clips(
        tmp_path / "clips", "OxPnZzn1_L8_000883.wav", "YJHmBKwQ3Bk_30.wav", "Y---1_cCGK4M.wav", "one_clip_11_000005.wav"
    )
    write_clips(
        tmp_path / "clips",
        "two_clips_1_000005.wav",
        "two_clips_1_000050.wav",
        "same_clip_1_5.wav",
        "same_clip_1_000005.wav",
    )
    captions = {
        "OxPnZzn1_L8_000883": "A diver breathes",
        "YJHmBKwQ3Bk_000030": "Birds sing",
        "Y---1_cCGK4M": "A bell rings",
        "Yone_clip_11": "A dog barks",
        "9eUrEyAR3xk_84_10": "Gone",
        "two_clips_1": "Which one?",
        "same_clip_1_5_10": "Which file?",
        "not an id": "Rain",
    }
    table = write_csv(tmp_path / "VGGSound_AudioSetCaps_caption.csv", ["id", "caption"], captions.items())
    code, _, _ = run("--vggsound", table, "--vggsound-clips", tmp_path / "clips", "-o", out)
    assert code == 0
    train = load_pairs(out, "train")
    assert clips_by_text(train) == {
        "A diver breathes": "OxPnZzn1_L8_000883.wav",
        "Birds sing": "YJHmBKwQ3Bk_30.wav",
        "A bell rings": "Y---1_cCGK4M.wav",
        "A dog barks": "one_clip_11_000005.wav",
    }
    assert set(train["source"]) == {"vggsound"}
    report = read_report(out)
    assert report["left_out"]["no clip"] == ["vggsound/9eUrEyAR3xk_84_10", "vggsound/not an id"]
    assert [line.split(":")[0] for line in report["left_out"]["several clips"]] == [
        "vggsound/two_clips_1",
        "vggsound/same_clip_1_5_10",
    ]
    assert report["left_out_counts"] == {"no clip": 2, "several clips": 2}


def test_captions_are_cleaned_and_duplicates_dropped(tmp_path, out):
    write_clips(tmp_path, "a.wav", "b.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "zero.wav").write_bytes(b"")
    rows = [
        ("a.wav", "  A dog\n\tbarks\u200b  twice\x07 "),
        ("a.wav", "A dog barks twice"),
        ("a.wav", "A cafe\u0301, loud"),
        ("b.wav", "A dog barks twice"),
        ("b.wav", " \t\u200b"),
        ("gone.wav", "Rain"),
        ("broken.wav", "Rain"),
        ("zero.wav", "Rain"),
        ("/a.wav", 'A man says "hello, you"'),
    ]
    write_csv(tmp_path / "sounds.csv", ["audio", "text"], rows)
    code, stdout, stderr = run("--table", tmp_path / "sounds.csv", "-o", out)
    assert code == 0 and "train: 4 pairs of sounds" in stdout
    train = load_pairs(out, "train")
    assert train["text"][:] == [
        "A dog barks twice",
        "A caf\u00e9, loud",
        "A dog barks twice",
        'A man says "hello, you"',
    ]
    assert train["id"][:] == ["sounds/a.wav", "sounds/a.wav#2", "sounds/b.wav", "sounds//a.wav"]
    report = read_report(out)
    assert report["left_out_counts"] == {"duplicate": 1, "empty caption": 1, "no clip": 1, "broken clip": 2}
    assert report["left_out"]["no clip"] == ["sounds/gone.wav"] and "sounds/gone.wav" in stderr
    assert "the file is empty" in report["left_out"]["broken clip"][1]
    assert sum(report["left_out_counts"].values()) + len(train) == report["read"]["sounds"] == len(rows)
    assert check_rows(train) == []


def test_json_lines_folders_and_splits(tmp_path, out):
    for split in ("train", "test"):
        write_clips(tmp_path / "mine" / split, "a.wav")
    write_csv(tmp_path / "mine" / "train" / "metadata.csv", ["file_name", "text"], [("a.wav", "Rain")])
    line = json.dumps({"file_name": "a.wav", "caption": "Wind", "tags": ["x"]})
    (tmp_path / "mine" / "test" / "metadata.jsonl").write_text(line + "\n\n")
    write_clips(tmp_path / "clips", "b.wav")
    more = write_csv(tmp_path / "more.csv", ["audio", "caption"], [(tmp_path / "clips" / "b.wav", "A bell")])
    dev = write_csv(tmp_path / "my_dev-set.csv", ["audio", "caption"], [("/b.wav", "A gong")])
    tables = [tmp_path / "mine", f"test={more}", dev]
    arguments = [argument for table in tables for argument in ("--table", table)]
    assert run(*arguments, "--table-clips", tmp_path / "clips", "-o", out)[0] == 1  # a.wav is not there
    arguments = [argument for table in tables[1:] for argument in ("--table", table)]
    assert run(*arguments, "--table-clips", tmp_path / "clips", "-o", out)[0] == 0
    assert {name: split["text"][:] for name, split in load_pairs(out).items()} == {
        "validation": ["A gong"],
        "test": ["A bell"],
    }
    assert run("--table", tmp_path / "mine", "-o", out)[0] == 0
    assert {name: split["text"][:] for name, split in load_pairs(out).items()} == {"train": ["Rain"], "test": ["Wind"]}
    assert load_pairs(out, "test")[0]["id"] == "mine/test/a.wav" and load_pairs(out, "test")[0]["source"] == "mine"


MALFORMED = {
    "columns": ("file,words\na.wav,Rain\n", "no column wav_file_name"),
    "text column": ("audio,words\na.wav,Rain\n", "no column text or caption; it has audio, words"),
    "ragged": ("audio,text\na.wav,Rain, then wind\n", "line 2: 3 fields, but the header has 2"),
    "short": ("audio,text\na.wav\n", "line 2: 1 fields"),
    "quote": ('audio,text\na.wav,"Rain\n', "a quote may be missing"),
    "quote inside": ('audio,text\na.wav,"Rain" and wind\n', "a quote may be missing"),
    "header only": ("audio,text\n", "no rows"),
    "encoding": ("audio,text\na.wav,Caf\udce9\n", "not UTF-8 (byte 0xe9"),
    "utf-16": ("\udcff\udcfea\0u\0", "not UTF-8 (byte 0xff"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_table_is_named(tmp_path, out, name):
    content, message = MALFORMED[name]
    write_clips(tmp_path, "a.wav")
    (tmp_path / "bad.csv").write_bytes(content.encode(errors="surrogateescape"))
    code, stdout, stderr = run("--table", tmp_path / "bad.csv", "-o", out)
    assert (code, stdout) == (1, "") and not out.exists()
    assert stderr.startswith("error: ") and "bad.csv" in stderr and message in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav"\n', "line 2: not JSON"),
        ('{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav"}\n', "line 2: the key text of the first line is missing"),
        ('["a.wav", "x"]\n', "line 1: a JSON object is needed, not list"),
        ('{"audio": "a.wav", "text": ["x", "y"]}\n', "line 1: audio and text must be strings"),
    ],
)
def test_malformed_json_lines(tmp_path, out, content, message):
    write_clips(tmp_path, "a.wav")
    (tmp_path / "bad.jsonl").write_text(content)
    code, _, stderr = run("--table", tmp_path / "bad.jsonl", "-o", out)
    assert code == 1 and message in stderr


def test_byte_order_mark_is_no_part_of_a_column(tmp_path, out):
    write_clips(tmp_path, "a.wav")
    (tmp_path / "excel.csv").write_text("audio,text\na.wav,Caf\u00e9\n", encoding="utf-8-sig")
    assert run("--table", tmp_path / "excel.csv", "-o", out)[0] == 0
    assert load_pairs(out, "train")["text"][:] == ["Caf\u00e9"]


def test_wrong_arguments_are_told(tmp_path, out):
    table = write_csv(tmp_path / "train.csv", AUDIOCAPS_HEADER, [(1, "r1nicOVtvkQ", 0, "Rain")])
    assert run("-o", out)[0] == 2
    code, _, stderr = run("--audiocaps", table, "-o", out)
    assert code == 2 and "--audiocaps-clips" in stderr
    assert "no such folder of clips" in run("--audiocaps", table, "--audiocaps-clips", tmp_path / "x", "-o", out)[2]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "r1nicOVtvkQ.mp4").touch()
    assert "1 *.mp4, but none of" in run("--audiocaps", table, "--audiocaps-clips", tmp_path / "videos", "-o", out)[2]
    write_clips(tmp_path / "clips", "other_scheme-1.wav")
    code, _, stderr = run("--audiocaps", table, "--audiocaps-clips", tmp_path / "clips", "-o", out)
    assert code == 1 and "nothing is left of 1 captions, such as audiocaps/1" in stderr and "other_scheme-1" in stderr
    assert "is it for train or test" in run("--table", tmp_path / "train_test.csv", "-o", out)[2]
    assert "no such table" in run("--table", tmp_path / "absent.csv", "-o", out)[2]
    assert "no metadata.csv or metadata.jsonl" in run("--table", tmp_path / "clips", "-o", out)[2]
    assert not out.exists()


def test_again_gives_the_same_files_and_replaces_only_its_own(tmp_path, out):
    write_clips(tmp_path, "a.wav")
    table = write_csv(tmp_path / "t.csv", ["audio", "text"], [("a.wav", "Rain")])
    contents = []
    for _ in range(2):
        assert run("--table", table, "-o", out)[0] == 0
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    write_csv(tmp_path / "t.csv", ["audio", "text"], [("a.wav", "Wind")])
    assert run("--table", table, "-o", out)[0] == 0
    assert load_pairs(out, "train")["text"][:] == ["Wind"]
    (out / "notes.txt").write_text("mine")
    code, _, stderr = run("--table", table, "-o", out)
    assert code == 1 and "notes.txt" in stderr and (out / "notes.txt").read_text() == "mine"


def test_embedded_sounds(tmp_path, out):
    write_clips(tmp_path, "a.wav")
    sound = (tmp_path / "a.wav").read_bytes()
    table = write_csv(tmp_path / "t.csv", ["audio", "text"], [("a.wav", "Rain"), ("a.wav", "Wind")])
    assert run("--table", table, "-o", out, "--embed-audio")[0] == 0
    (tmp_path / "a.wav").unlink()
    assert [row["audio"] for row in load_pairs(out, "train")] == [{"bytes": sound, "path": "a.wav"}] * 2


def test_killed_while_writing_leaves_nothing_at_the_output(tmp_path, out):
    write_clips(tmp_path, "a.wav")
    table = write_csv(tmp_path / "t.csv", ["audio", "text"], [("a.wav", f"Rain {n}") for n in range(60_000)])
    process = subprocess.Popen([sys.executable, SCRIPT, "--table", table, "-o", out, "--embed-audio"])
    partial, started = tmp_path / ".out.partial", time.monotonic()
    while not partial.exists() and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert partial.exists() and not out.exists()
    assert run("--table", table, "-o", out)[0] == 0
    assert len(load_pairs(out, "train")) == 60_000 and not partial.exists()


def test_help():
    code, stdout, _ = run("--help")
    assert code == 0
    assert all(option in stdout for option in ("--audiocaps", "--vggsound", "--table", "--output", "--embed-audio"))
