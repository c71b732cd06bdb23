"""A table scored again: what has changed is scored anew, what has not is left, and nobody else writes meanwhile."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import soundfile
from conftest import ROOT, SAMPLING_RATE
from scored_tables import StandIn, read_rows, write_rows
from teachers import make_clip

from modeling_xacle.data.files import check_outputs, held, unfinished_folder
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.data.sources import PairSource
from modeling_xacle.scoring import changes, groups
from modeling_xacle.scoring.options import TableOptions
from modeling_xacle.scoring.table import score_table


@pytest.fixture
def own(clips, tmp_path):
    """A folder of four clips and a table of five pairs, which a test may change."""
    for number in range(4):
        shutil.copy(clips / f"{number}.wav", tmp_path)
    rows = [("0.wav", "a", 0), ("1.wav", "b", 1), ("2.wav", "a", 2), ("1.wav", "a", 3), ("3.wav", "b", 4)]
    return PairSource(write_rows(tmp_path / "pairs.csv", rows))


def replace(path, seconds, like=None):
    """Another sound under the same name; with the times of `like`, if named."""
    soundfile.write(path, make_clip(seconds), SAMPLING_RATE)
    if like is not None:
        os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def test_a_replaced_clip_is_scored_again_and_the_others_are_not(own, align, tmp_path, caplog):
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    first = score_table(stand_in, own, output)
    before = output.read_bytes()
    assert (first.scored, first.was_complete) == (5, False)
    stand_in.passes.clear()
    replace(tmp_path / "1.wav", 0.9)
    report = score_table(stand_in, own, output)
    assert (report.scored, report.was_complete, stand_in.passes) == (2, False, [[round(0.9 * SAMPLING_RATE)]])
    assert "1 sounds have changed since they were scored" in caplog.text
    rows, old = read_rows(output), before.decode().splitlines()[1:]
    assert [",".join(row.values()) != line for row, line in zip(rows, old, strict=True)] == [0, 1, 0, 1, 0]
    score_table(stand_in, own, tmp_path / "fresh.csv")
    assert output.read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def test_nothing_is_scored_where_nothing_changed(own, align, tmp_path, xacle):
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    score_table(stand_in, own, output)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("o.csv*")}
    for number in range(4):
        os.utime(tmp_path / f"{number}.wav")  # touched, with the same content
    stand_in.passes.clear()
    report = score_table(stand_in, own, output)
    assert (report.scored, report.was_complete, stand_in.passes) == (0, True, [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("o.csv*")} == times
    assert sorted(path.name for path in times) == ["o.csv", "o.csv.json", "o.csv.records.jsonl"]
    table = write_rows(tmp_path / "one.csv", [("0.wav", "a", 0)])
    assert "1 pairs scored" in xacle("score", table, "-o", tmp_path / "two.csv")
    assert "already complete, nothing scored" in xacle("score", table, "-o", tmp_path / "two.csv")


def test_same_size_and_time_do_not_hide_another_content(own, align, tmp_path, monkeypatch):
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    score_table(stand_in, own, output)
    state = (tmp_path / "2.wav").stat()
    replace(tmp_path / "2.wav", len(soundfile.read(tmp_path / "3.wav")[0]) / SAMPLING_RATE)
    shutil.copy(tmp_path / "2.wav", tmp_path / "0.wav")
    replace(tmp_path / "2.wav", 0.15, like=state)  # as long as before, and of the same time
    assert score_table(stand_in, own, output).scored == 2
    # A file system that keeps no time of change: only contents can tell.
    for module in (changes, groups):
        monkeypatch.setattr(module, "clip_state", lambda audio: {"path": audio, "size": os.path.getsize(audio)})
    score_table(stand_in, own, tmp_path / "p.csv")
    samples, _ = soundfile.read(tmp_path / "3.wav")
    soundfile.write(tmp_path / "3.wav", -samples, SAMPLING_RATE)
    assert score_table(stand_in, own, tmp_path / "p.csv").was_complete
    assert score_table(stand_in, own, tmp_path / "p.csv", TableOptions(verify=True)).scored == 1


def test_a_clip_that_is_gone_loses_its_score(own, align, tmp_path):
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    score_table(stand_in, own, output)
    (tmp_path / "3.wav").unlink()
    assert score_table(stand_in, own, output).counts["error"] == 1
    last = read_rows(output)[4]
    assert last["score"] == "" and "3.wav: no such audio file" in last["status"]


def test_a_clip_that_changes_while_it_is_read_is_an_error_that_is_tried_again(own, align, tmp_path):
    class Writer(StandIn):
        def preprocess(self, inputs, **kwargs):
            item = super().preprocess(inputs, **kwargs)
            if str(inputs["audio"]).endswith("0.wav") and not self.passes:
                replace(inputs["audio"], 0.4)
            return item

    report = score_table(Writer(align), own, tmp_path / "o.csv")
    assert report.counts["error"] == 1
    assert "0.wav: changed while it was read" in read_rows(tmp_path / "o.csv")[0]["status"]
    assert score_table(StandIn(align), own, tmp_path / "o.csv").scored == 1


def test_damaged_files_of_an_earlier_run_are_named(own, align, tmp_path):
    output = tmp_path / "o.csv"
    score_table(StandIn(align), own, output)
    for name in ("o.csv.json", "o.csv.records.jsonl"):
        content = (tmp_path / name).read_text()
        odd_clip = '{"block": 0, "row": 0, "status": "ok", "clip": {"path": "a"}}\n'
        for broken in ("[]\n", "{}\n", '{"block": [], "row": 0, "status": "ok"}\n', odd_clip, "[" * 100_000 + "\n"):
            (tmp_path / name).write_text(broken)
            with pytest.raises(ValueError, match=rf"{name}.*(damaged; begin anew with --restart|not JSON)"):
                score_table(StandIn(align), own, output)
        (tmp_path / name).write_text(content)
    assert score_table(StandIn(align), own, output, TableOptions(restart=True)).scored == 5


def test_records_that_are_lost_or_of_nobody_are_not_trusted(own, align, tmp_path):
    output, stand_in = tmp_path / "o.csv", StandIn(align)
    score_table(stand_in, own, output)
    before = output.read_bytes()
    replace(tmp_path / "1.wav", 0.9)
    (tmp_path / "o.csv.records.jsonl").write_text("")
    assert score_table(stand_in, own, output).scored == 5
    assert output.read_bytes() != before
    (tmp_path / "p.csv.work").mkdir()  # without settings: nobody knows what these are the scores of
    rows = [{"block": 0, "row": row, "score": 9.99, "status": "ok", "notes": ""} for row in range(5)]
    (tmp_path / "p.csv.work" / "process-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_table(stand_in, own, tmp_path / "p.csv").scored == 5
    assert (tmp_path / "p.csv").read_bytes() == output.read_bytes()
    (tmp_path / "p.csv.work.done").mkdir()  # of a run that was killed in its last moment
    assert score_table(stand_in, own, tmp_path / "p.csv").was_complete
    assert not (tmp_path / "p.csv.work.done").exists()


def test_a_folder_that_a_killed_run_had_moved_aside_is_put_back(tmp_path):
    (tmp_path / ".out.earlier").mkdir()
    (tmp_path / ".out.earlier" / "precious").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path / "link"):
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "precious").read_text() == "a"
    held_by_link = held(tmp_path / "link")
    with held(f"{tmp_path}/out/"), pytest.raises(ValueError, match="is being written by process"), held_by_link:
        pass


def test_an_output_that_another_process_writes_is_not_touched(own, align, tmp_path):
    output = tmp_path / "o.csv"
    hold = f"with held({str(output)!r}): print(flush=True); time.sleep(99)"
    code = f"import time\nfrom modeling_xacle.data.files import held\n{hold}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(ValueError, match=rf"o\.csv: is being written by process {process.pid} on .*; wait for it"):
        score_table(StandIn(align), own, output)
    with pytest.raises(ValueError, match="is being written by process"), unfinished_folder(output):
        pass
    assert not output.exists()
    process.kill()
    process.wait()
    assert score_table(StandIn(align), own, output).scored == 5  # a process that is dead holds nothing
    assert not (tmp_path / "o.csv.lock").exists()


def test_a_rated_dataset_is_scored_beside_its_ratings(clips, align, tmp_path, xacle):
    rows = [{"id": str(n), "audio": str(clips / f"{n}.wav"), "text": "a", "score": float(n)} for n in range(4)]
    dataset = make_dataset([*rows, {**rows[0], "id": "4", "audio": str(tmp_path / "gone.wav")}])
    save_dataset({"test": dataset}, tmp_path / "rated")
    score_table(StandIn(align), PairSource(tmp_path / "rated"), tmp_path / "o.csv")
    found = read_rows(tmp_path / "o.csv")
    assert [float(row["score"]) for row in found] == [0.0, 1.0, 2.0, 3.0, 0.0]
    assert {"pred_score", "pred_status", "pred_notes"} < set(found[0])
    result = json.loads(xacle("evaluate", tmp_path / "o.csv", tmp_path / "o.csv", "--json", "--resamples", "10"))
    assert result["columns"] == {"prediction": "pred_score", "reference": "score", "key": ["id"]}
    assert (result["N"], result["dropped"]["without_score"]) == (4, 1)  # a row's `pred_status` says that it failed


@pytest.mark.parametrize(
    "kind", ["the same", "another spelling", "a link", "a hard link", "the folder", "a place within", "twice"]
)
def test_no_output_is_an_input_however_it_is_spelled(kind, tmp_path):
    source, folder = tmp_path / "in.csv", tmp_path / "folder"
    folder.mkdir()
    source.write_text("a")
    (tmp_path / "link.csv").symlink_to(source)
    os.link(source, tmp_path / "hard.csv")
    outputs = {
        "the same": [source],
        "another spelling": [folder / ".." / "in.csv"],
        "a link": [tmp_path / "link.csv"],
        "a hard link": [tmp_path / "hard.csv"],
        "the folder": [tmp_path],
        "a place within": [tmp_path / "in" / "o.csv"],
        "twice": [folder / "o.csv", tmp_path / "folder" / ".." / "folder" / "o.csv"],
    }
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"choose another (output|name)"):
        check_outputs(outputs[kind], [source, None, tmp_path / "in"])
    check_outputs([tmp_path / "out.csv", None], [source, None])
    with held(tmp_path / "new" / "out.csv"):
        assert (tmp_path / "new").is_dir()


def test_odd_cells_are_written_as_they_are_and_scores_are_not_clamped(clips, align, tmp_path):
    rows = [("0.wav", "=1+1", 0), ("1.wav", "a\x07bell", 1)]
    pairs = PairSource(write_rows(tmp_path / "odd.csv", rows), audio_dir=clips)
    stand_in = StandIn(align)
    stand_in.score = lambda length, text: 42.0 if text == "=1+1" else -3.0
    score_table(stand_in, pairs, tmp_path / "o.csv")
    assert [(row["text"], row["score"]) for row in read_rows(tmp_path / "o.csv")] == [
        ("=1+1", "42.0"),
        ("a\x07bell", "-3.0"),
    ]
