"""Scoring tables: every row accounted for, each clip encoded once, the same bytes whatever interrupts or shares it."""

import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import PARITY, ROOT, SAMPLING_RATE
from scored_tables import SECONDS, StandIn, many_rows, read_rows, scores, write_rows
from teachers import CAPTIONS, make_clip, save_teacher

from modeling_xacle.data import sources
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.data.sources import Clip, PairRow, PairSource
from modeling_xacle.judges.contrastive import ContrastiveTeacher
from modeling_xacle.scoring.files import RecordReader, ScoringFiles, read_records
from modeling_xacle.scoring.groups import CLIPS_PER_GROUP, ClipLoader, PassSize, groups_of
from modeling_xacle.scoring.options import TableOptions
from modeling_xacle.scoring.scorer import load_scorer
from modeling_xacle.scoring.table import describe, score_pending, score_table


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"workers": 2}])
def test_each_clip_is_encoded_and_each_caption_tokenised_once_and_scores_are_the_pipelines(
    options, align, table, rows, expected, tmp_path, monkeypatch
):
    encoded, tokenised = [], []
    tokenise = align.processor.tokenize_caption
    monkeypatch.setattr(align.processor, "tokenize_caption", lambda text: tokenised.append(text) or tokenise(text))
    encode = align.model.get_audio_features
    monkeypatch.setattr(
        align.model,
        "get_audio_features",
        lambda input_features, *mask: encoded.append(len(input_features)) or encode(input_features),
    )
    report = score_table(align, PairSource(table), tmp_path / "o.csv", TableOptions(**options))
    assert sum(encoded) == 10
    if not options.get("workers"):  # whose processes count for themselves
        assert len(tokenised) == 41  # one of them to try the request
    result = read_rows(tmp_path / "o.csv")
    assert [(row["audio"], row["text"], int(row["key"])) for row in result] == rows
    np.testing.assert_allclose(scores(tmp_path / "o.csv"), expected, atol=1e-4)
    assert {row["status"] for row in result} == {"padded"}
    assert report.counts == {"ok": 0, "padded": 40, "cut": 0, "windowed": 0, "error": 0}
    assert (report.rows, report.scored) == (40, 40)
    assert not (tmp_path / "o.csv.work").exists()


def make_source(kind, clips, rows, tmp_path, monkeypatch):
    """The same pairs as a source of another kind, and how to open it."""
    values = [{"audio": str(clips / name), "text": text, "key": key, "tags": ["a", "b"]} for name, text, key in rows]
    if kind == ".tsv":
        path = tmp_path / "pairs.tsv"
        path.write_text("".join(f"{a}\t{t}\t{k}\n" for a, t, k in [("path", "caption", "key"), *rows]))
        return PairSource(path, audio_dir=clips)
    if kind == ".jsonl":
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return PairSource(path)
    if kind == ".parquet":
        content = {name: {"bytes": (clips / name).read_bytes(), "path": name} for name, _, _ in rows}
        table = pa.Table.from_pylist(
            [{**value, "audio": content[row[0]]} for value, row in zip(values, rows, strict=True)]
        )
        pq.write_table(table, tmp_path / "pairs.parquet")
        return PairSource(tmp_path / "pairs.parquet")
    if kind == "dataset":
        dataset = make_dataset({"id": str(v["key"]), "audio": v["audio"], "text": v["text"]} for v in values)
        save_dataset({"train": dataset, "test": dataset.select(range(2))}, tmp_path / "pairs", embed_audio=True)
        return PairSource(tmp_path / "pairs", split="train")
    text = "".join(f'/{name},"{text}",{key}\n' for name, text, key in [("file", "words", "key"), *rows]).lstrip("/")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return PairSource("-", "file", "words", clips)


@pytest.mark.parametrize("output", ["o.csv", "o.tsv", "o.jsonl", "o.parquet"])
@pytest.mark.parametrize("kind", [".tsv", ".jsonl", ".parquet", "dataset", "-"])
def test_any_source_to_any_output(kind, output, align, clips, rows, tmp_path, monkeypatch):
    source = make_source(kind, clips, rows, tmp_path, monkeypatch)
    stand_in = StandIn(align)
    score_table(stand_in, source, tmp_path / output)
    lengths = {f"{n}.wav": round(0.05 * (n + 1) * SAMPLING_RATE) for n in range(12)}
    np.testing.assert_allclose(
        scores(tmp_path / output), [StandIn.score(lengths[name], text) for name, text, _ in rows], atol=1e-5
    )
    assert sorted(stand_in.passes[0]) == sorted(set(stand_in.passes[0]))
    if output == "o.jsonl" and kind == ".jsonl":
        first = json.loads((tmp_path / output).open().readline())
        assert (first["key"], first["tags"], first["status"]) == (0, ["a", "b"], "ok")


def test_a_dataset_of_several_splits_needs_one_named(clips, rows, tmp_path, monkeypatch):
    make_source("dataset", clips, rows, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"has the splits train, test; choose one with --split"):
        PairSource(tmp_path / "pairs")


def test_ten_thousand_rows_are_all_accounted_for(align, clips, tmp_path):
    rows = many_rows(10_000)
    write_rows(clips / "many.csv", rows)
    report = score_table(StandIn(align), PairSource(clips / "many.csv"), tmp_path / "o.csv")
    result = read_rows(tmp_path / "o.csv")
    assert [(row["audio"], row["text"], int(row["key"])) for row in result] == rows
    errors = [row for row in result if row["status"].startswith("error: ")]
    assert [int(row["key"]) for row in errors] == list(range(0, 10_000, 100))
    reasons = ["gone.wav: no such audio file", "not audio that libsndfile", "names no sound", "The caption is empty"]
    assert all(reason in row["status"] for reason, row in zip(reasons * 25, errors, strict=True))
    assert {row["score"] for row in errors} == {""}
    assert all(0 <= float(row["score"]) <= 10 for row in result if row not in errors[:1] and row["score"])
    assert (report.counts["ok"], report.counts["error"]) == (9900, 100)


def test_memory_does_not_grow_with_the_table(align, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(sources.PairSource.blocks, "__defaults__", (512, 2**28))
    stand_in, peaks = StandIn(align), []
    for count in (1000, 2000, 8000):
        write_rows(clips / f"{count}.csv", many_rows(count))
        tracemalloc.start()
        score_table(stand_in, PairSource(clips / f"{count}.csv"), tmp_path / f"{count}.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1] + 2**18, peaks


def in_another_process(target, *arguments):
    """A forked process: the imports are there."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.fixture
def one_thread():
    """As in a forked process, or one of several: the bits of a sum depend on it."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def test_killed_anywhere_and_continued_gives_the_same_bytes(align, clips, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(sources.PairSource.blocks, "__defaults__", (400, 2**28))
    pairs = PairSource(write_rows(clips / "killed.csv", many_rows(6000)))
    whole, killed = tmp_path / "whole" / "o.csv", tmp_path / "killed" / "o.csv"
    whole.parent.mkdir()
    killed.parent.mkdir()
    score_table(StandIn(align), pairs, whole)
    generator, kills = random.Random(1), 0
    for _ in range(8):
        process = in_another_process(score_table, StandIn(align, pause=0.04), pairs, killed)
        process.join(generator.uniform(0.1, 0.5))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills
    report = score_table(StandIn(align), pairs, killed)
    assert report.counts["error"] == 60
    assert killed.read_bytes() == whole.read_bytes()
    assert killed.with_name("o.csv.json").read_bytes() == whole.with_name("o.csv.json").read_bytes()


def test_shares_are_disjoint_and_another_number_of_processes_continues(align, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(sources.PairSource.blocks, "__defaults__", (400, 2**28))
    pairs = PairSource(write_rows(clips / "shared.csv", many_rows(3000)))
    score_table(StandIn(align), pairs, tmp_path / "whole.csv")
    files, options = ScoringFiles(tmp_path / "o.csv", describe(align, pairs, TableOptions())), TableOptions()
    files.open()
    shares = []
    for rank in (0, 2):  # of three; the second never gets to anything
        state = SimpleNamespace(process_index=rank, num_processes=3, is_main_process=rank == 0)
        score_pending(StandIn(align), pairs, files, options, state)
        records = read_records([files.work / f"process-{rank:05d}.jsonl"])
        shares.append({row for _, block in records for row in block})
    assert not shares[0] & shares[1]
    assert all(len(share) > 500 for share in shares)
    stand_in = StandIn(align)
    report = score_table(stand_in, pairs, tmp_path / "o.csv")
    assert 500 < report.scored < 1500
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_half_written_line_is_dropped_and_its_group_scored_again(align, table, tmp_path):
    output, pairs, work = tmp_path / "o.csv", PairSource(table), tmp_path / "o.csv.work"
    score_table(StandIn(align), pairs, tmp_path / "whole.csv")
    lines = [json.dumps({"block": 0, "row": row, "score": 1.0, "status": "ok", "notes": ""}) for row in range(3)]
    files = ScoringFiles(output, describe(align, pairs, TableOptions()))
    files.open()
    (work / "process-00000.jsonl").write_text("\n".join([*lines, lines[0][:20]]))
    assert len(next(read_records([work / "process-00000.jsonl"]))[1]) == 3
    score_table(StandIn(align), pairs, output)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_finished_run_does_nothing_and_errors_alone_are_tried_again(align, clips, tmp_path):
    rows = [("0.wav", "a", 0), ("late.wav", "b", 1), ("1.wav", "c", 2), ("late.wav", " ", 3)]
    pairs = PairSource(write_rows(tmp_path / "pairs.csv", rows), audio_dir=clips)
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    assert score_table(stand_in, pairs, output).scored == 2
    before = output.read_bytes()
    assert score_table(stand_in, pairs, output).scored == 0
    assert output.read_bytes() == before
    soundfile.write(clips / "late.wav", make_clip(0.5), SAMPLING_RATE)
    stand_in.passes.clear()
    report = score_table(stand_in, pairs, output)
    (clips / "late.wav").unlink()
    assert stand_in.passes == [[8000]]
    assert (report.scored, report.counts["ok"], report.counts["error"]) == (1, 3, 1)
    complete = PairSource(write_rows(tmp_path / "complete.csv", rows[:1]), audio_dir=clips)
    score_table(stand_in, complete, tmp_path / "c.csv")
    stand_in.passes.clear()
    assert score_table(stand_in, complete, tmp_path / "c.csv").scored == 0
    assert stand_in.passes == []


def test_strict_stops_and_keeps_what_it_has(align, clips, tmp_path):
    rows = [("0.wav", f"a{key}", key) for key in range(300)] + [("gone.wav", "b", 300), ("1.wav", "c", 301)]
    pairs = PairSource(write_rows(clips / "strict.csv", rows))
    stand_in, output = StandIn(align), tmp_path / "o.csv"
    with pytest.raises(ValueError, match=r"strict.csv, line 302: .*gone.wav: no such audio file"):
        score_table(stand_in, pairs, output, TableOptions(strict=True))
    assert not output.exists()
    stand_in.passes.clear()
    assert score_table(stand_in, pairs, output).counts == {"ok": 301, "padded": 0, "cut": 0, "windowed": 0, "error": 1}
    assert stand_in.passes == []  # what was scored before the stop is kept


@pytest.mark.parametrize("begun", [False, True])
def test_another_table_or_other_settings_are_refused(begun, align, clips, table, tmp_path):
    output = tmp_path / "o.csv"
    stand_in, pairs = StandIn(align), PairSource(table)
    score_table(stand_in, pairs, output)
    if begun:
        ScoringFiles(output, json.loads((tmp_path / "o.csv.json").read_text())).open()
    other = PairSource(write_rows(clips / "other.csv", [("0.wav", "a", 0)]))
    with pytest.raises(ValueError, match=r"begun with another table.rows, table.sha256; .*--restart"):
        score_table(stand_in, other, output)
    with pytest.raises(ValueError, match=r"begun with another scorer\.window_seconds"):
        score_table(stand_in, pairs, output, TableOptions(window_seconds=5))
    with pytest.raises(ValueError, match="begun with another columns"):
        score_table(stand_in, pairs, output, TableOptions(signature=True))
    report = score_table(stand_in, other, output, TableOptions(restart=True))
    assert report.scored == len(read_rows(output)) == 1


def test_a_sequence_in_another_order_does_not_continue_a_table(align, table, tmp_path, monkeypatch):
    output, pairs = tmp_path / "o.csv", PairSource(table)
    score_table(StandIn(align), pairs, output)
    monkeypatch.setattr(align.processor, "audio_first", True)
    with pytest.raises(ValueError, match=r"begun with another scorer\.processor; choose another output"):
        score_table(StandIn(align), pairs, output)


def test_a_table_of_another_version_that_recorded_less_is_not_continued(align, table, tmp_path):
    output, pairs = tmp_path / "o.csv", PairSource(table)
    score_table(StandIn(align), pairs, output)
    sidecar = json.loads((tmp_path / "o.csv.json").read_text())
    sidecar["scorer"].pop("processor")
    (tmp_path / "o.csv.json").write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match=r"by another version of this package, which recorded other.*--restart"):
        score_table(StandIn(align), pairs, output)


def test_what_was_not_written_here_is_not_replaced(align, table, tmp_path):
    output = tmp_path / "o.csv"
    output.write_text("precious")
    with pytest.raises(ValueError, match="exists, and not from this command"):
        score_table(StandIn(align), PairSource(table), output)
    assert output.read_text() == "precious"
    with pytest.raises(ValueError, match="would be written over the input"):
        score_table(StandIn(align), PairSource(table), table)
    with pytest.raises(ValueError, match=r"ends in \.csv, \.tsv, \.jsonl"):
        score_table(StandIn(align), PairSource(table), tmp_path / "o.txt")


def test_windows_signature_and_prefix(align, tmp_path):
    clip = PARITY / "wav" / "c_44k_stereo_12s.wav"
    pairs = PairSource(write_rows(tmp_path / "pairs.csv", [(clip, "a", 5)], ("audio", "text", "score")))
    with pytest.raises(ValueError, match=r"already has the column score.*--prefix"):
        score_table(align, pairs, tmp_path / "o.csv")
    options = TableOptions(window_seconds=5, windows=True, signature=True, prefix="our_")
    report = score_table(align, pairs, tmp_path / "o.csv", options)
    [row] = read_rows(tmp_path / "o.csv")
    assert (row["score"], row["our_status"], row["our_signature"]) == ("5", "windowed", report.signature)
    windows = json.loads(row["our_windows"])
    assert [window["start"] for window in windows] == [0, 5, 10]
    direct = align({"audio": str(clip), "text": "a"}, window_seconds=5, return_windows=True)
    assert float(row["our_score"]) == pytest.approx(direct["score"], abs=1e-4)
    with pytest.raises(ValueError, match="must satisfy"):
        score_table(align, pairs, tmp_path / "p.csv", TableOptions(window_seconds=50, prefix="our_"))


def test_the_sidecar_says_how_scores_were_made(align, table, tmp_path):
    report = score_table(align, PairSource(table), tmp_path / "o.csv")
    sidecar = json.loads(Path(report.sidecar).read_text())
    assert sidecar["rows"] == report.counts
    assert sidecar["signature"] == report.signature
    assert sidecar["scorer"]["front_end"]["sampling_rate"] == SAMPLING_RATE
    assert sidecar["scorer"]["dtype"] == "float32" and sidecar["scorer"]["scale"] == "0-10"
    assert sidecar["table"]["rows"] == 40
    assert sidecar["model"] == align.model.name_or_path


def test_the_challenges_format(align, clips, tmp_path):
    rows = [("/1.wav", "a"), ("0.wav", "b"), ("gone.wav", "c")]
    pairs = PairSource(write_rows(tmp_path / "pairs.csv", rows, ("wav_file_name", "text")), audio_dir=clips)
    score_table(StandIn(align), pairs, tmp_path / "o.csv", TableOptions(xacle=True))
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["wav_file_name", "/1.wav", "0.wav", "gone.wav"]
    assert lines[0] == "wav_file_name,pred_score" and lines[3] == "gone.wav,"
    with pytest.raises(ValueError, match="the challenge's format is CSV"):
        score_table(StandIn(align), pairs, tmp_path / "o.tsv", TableOptions(xacle=True))


class SmallMemory(StandIn):
    """Runs out of memory with batches of more than three."""

    def forward(self, items, pass_size):
        if pass_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(items, pass_size)


def test_batches_are_halved_until_they_fit(align, table, tmp_path):
    assert score_table(SmallMemory(align), PairSource(table), tmp_path / "o.csv").scored == 40
    with pytest.raises(ValueError, match="A batch of 4 does not fit into memory"):
        score_table(SmallMemory(align), PairSource(table), tmp_path / "p.csv", TableOptions(batch_size=4))
    broken = StandIn(align)
    broken.forward = lambda items, pass_size: (_ for _ in ()).throw(RuntimeError("a mistake"))
    with pytest.raises(RuntimeError, match="a mistake"):
        score_table(broken, PairSource(table), tmp_path / "q.csv")
    assert PassSize(torch.device("cpu")).size == 8


def test_a_score_that_is_no_number_is_an_error(align, table, tmp_path):
    stand_in = StandIn(align)
    stand_in.score = lambda length, text: float("nan") if text == "beep" else 1.0
    report = score_table(stand_in, PairSource(table), tmp_path / "o.csv")
    assert report.counts["error"] == 10
    statuses = {row["status"] for row in read_rows(tmp_path / "o.csv")}
    assert any(status.startswith("error: the score is not a finite number: try --dtype float32") for status in statuses)


def test_groups_are_of_the_table_alone(align, clips):
    rows = [(f"{number % 100}.wav", "a", number) for number in range(900)]
    pairs = PairSource(write_rows(clips / "groups.csv", rows))
    [block] = pairs.blocks()
    groups = list(groups_of(pairs.clips(block)))
    assert [len(group) for group in groups] == [29, 29, 29, 13]
    assert sorted(row.number for group in groups for clip in group for row in clip.rows) == list(range(900))
    assert max(map(len, groups)) <= CLIPS_PER_GROUP
    assert [len(part) for part in pairs.blocks(max_rows=400)] == [400, 400, 100]


def test_later_results_of_a_row_count(tmp_path):
    for name, records in {"a": [(0, 0, 1.0), (0, 1, 1.0), (2, 9, 1.0)], "b": [(0, 1, 2.0), (1, 5, 2.0)]}.items():
        rows = [{"block": block, "row": row, "score": score, "status": "ok"} for block, row, score in records]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = RecordReader([tmp_path / "a", tmp_path / "b"])
    found = [{row: record["score"] for row, record in reader.block(number).items()} for number in range(4)]
    assert found == [{0: 1.0, 1: 2.0}, {5: 2.0}, {9: 1.0}, {}]


def test_keys_that_only_later_lines_have_are_kept(align, clips, tmp_path):
    lines = [{"audio": str(clips / "0.wav"), "text": "a"}, {"audio": str(clips / "1.wav"), "text": "b", "more": [1]}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score_table(StandIn(align), PairSource(tmp_path / "pairs.jsonl"), tmp_path / "o.jsonl")
    result = [json.loads(line) for line in (tmp_path / "o.jsonl").open()]
    assert [row.get("more") for row in result] == [None, [1]]


@pytest.mark.parametrize("output", ["o.csv", "o.jsonl"])
def test_what_is_no_text_is_written_all_the_same(output, align, clips, tmp_path):
    rows = [(0, "a \ud83d"), (1, "b"), ("\udcff", "c"), (None, "d"), (0, None), (0, ["e"]), ({}, "f")]
    lines = [{"audio": f"{name}.wav" if isinstance(name, int) else name, "text": text} for name, text in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = PairSource(tmp_path / "pairs.jsonl", audio_dir=clips)
    report = score_table(StandIn(align), pairs, tmp_path / output)
    assert (report.counts["ok"], report.counts["error"]) == (1, 6)
    found = PairSource(tmp_path / output).rows()
    assert [row["status"].split(":")[0] for _, row in found] == ["error", "ok", *["error"] * 5]


def test_worker_processes_are_not_sent_the_model(align, clap_folder):
    """Where processes are not forked, what they get is pickled."""
    for scorer in (align, load_scorer(clap_folder, "cpu")):
        loader = pickle.loads(pickle.dumps(ClipLoader(scorer, {})))
        assert loader.align.model is None and loader.align.processor is not None


def test_loaders_compute_the_spectrograms(align, clips):
    """But for windows, of which a long sound has many."""
    clip = Clip(str(clips / "0.wav"), [PairRow(0, 2, "beep")])
    item = ClipLoader(align, {"window_seconds": None, "hop_seconds": None})[0, clip][2]
    assert "waveform" not in item
    features = align.processor.feature_extractor(clip.audio)["input_features"]
    torch.testing.assert_close(item["sound"]["input_features"], features, rtol=0, atol=0)
    windowed = ClipLoader(align, {"window_seconds": 1.0, "hop_seconds": None})[0, clip][2]
    assert "waveform" in windowed and "sound" not in windowed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, model_folder, table, expected, tmp_path):
    align = load_scorer(model_folder, "cpu", dtype)
    report = score_table(align, PairSource(table), tmp_path / "o.csv")
    np.testing.assert_allclose(scores(tmp_path / "o.csv"), expected, atol=0.2)
    assert json.loads(Path(report.sidecar).read_text())["scorer"]["dtype"] == dtype


def test_other_models_are_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"a model of type qwen2; xacle, .*clap, pe_audio"):
        load_scorer(PARITY / "llm", "cpu")
    with pytest.raises(ValueError, match="--map-score and --processor are for other models"):
        load_scorer(model_folder, "cpu", map_score=True)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def long_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    for number, seconds in enumerate((0.4, 1.0, 2.6)):
        soundfile.write(folder / f"{number}.wav", make_clip(seconds, number), SAMPLING_RATE)
    return folder


def test_clap_gives_the_teachers_cosine_in_all_forms_of_call(clap_folder, long_clips):
    teacher, score = ContrastiveTeacher.from_pretrained(clap_folder), load_scorer(clap_folder, "cpu")
    paths = [str(long_clips / f"{number}.wav") for number in range(3)]
    cosines = teacher.embed_audio(paths) @ teacher.embed_text(CAPTIONS).T
    for path, row in zip(paths, cosines.tolist(), strict=True):
        results = score({"audio": path, "text": CAPTIONS})
        np.testing.assert_allclose([result["score"] for result in results], row, atol=1e-6)
        assert score({"audio": path, "text": CAPTIONS[0]})["score"] == pytest.approx(row[0], abs=1e-6)
    by_columns = score({"audio": paths, "text": CAPTIONS[:3]}, batch_size=3)
    np.testing.assert_allclose([result["score"] for result in by_columns], cosines.diag(), atol=1e-6)
    streamed = score({"audio": path, "text": "a dog barks"} for path in paths)
    notes = [result.get("notes") for result in streamed]
    assert notes == [["padded: 0.4 s to 1 s"], None, ["windowed: 2.6 s in windows of 1 s"]]
    with pytest.raises(ValueError, match="in its own windows"):
        score({"audio": paths[0], "text": "a"}, window_seconds=1)
    with pytest.raises(ValueError, match="The caption is empty"):
        score({"audio": paths[0], "text": " "})
    long = score({"audio": paths[1], "text": "a dog barks " * 20})
    assert long["notes"] == ["caption cut: 62 tokens to 22"]


@pytest.mark.parametrize("workers", [0, 2])
def test_clap_scores_tables(workers, clap_folder, long_clips, tmp_path):
    rows = [(f"{key % 3}.wav", CAPTIONS[key % 4], key) for key in range(12)] + [("gone.wav", "a", 12)]
    pairs = PairSource(write_rows(long_clips / "pairs.csv", rows))
    plain, mapped = load_scorer(clap_folder, "cpu"), load_scorer(clap_folder, "cpu", map_score=True)
    report = score_table(plain, pairs, tmp_path / "o.csv", TableOptions(workers=workers))
    assert report.counts == {"ok": 4, "padded": 4, "cut": 0, "windowed": 4, "error": 1}
    score_table(mapped, pairs, tmp_path / "m.csv")
    found, on_scale = (read_rows(tmp_path / name)[:12] for name in ("o.csv", "m.csv"))
    for row, other, (name, text, _) in zip(found, on_scale, rows[:12], strict=True):
        cosine = plain({"audio": str(long_clips / name), "text": text})["score"]
        assert float(row["score"]) == pytest.approx(cosine, abs=2e-6)
        assert float(other["score"]) == pytest.approx((cosine + 1) * 5, abs=1e-5)
    assert json.loads((tmp_path / "o.csv.json").read_text())["scorer"]["scale"] == "cosine"
    half = load_scorer(clap_folder, "cpu", "bfloat16")({"audio": str(long_clips / "1.wav"), "text": CAPTIONS[1]})
    assert half["score"] == pytest.approx(float(found[1]["score"]), abs=0.05)


def test_two_processes_write_what_one_writes(model_folder, align, table, tmp_path, one_thread):
    two, one = tmp_path / "two.csv", tmp_path / "one.csv"
    config = ROOT / "accelerate_configs" / "cpu_2_processes.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    command = ["--module", "modeling_xacle.cli", "score", table, "-o", two, "--model", model_folder, "--json"]
    result = subprocess.run(
        [sys.executable, *map(str, launch + command), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    [line] = result.stdout.splitlines()
    assert json.loads(line)["rows"] == 40
    score_table(align, PairSource(table), one)
    assert two.read_bytes() == one.read_bytes()
