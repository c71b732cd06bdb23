"""`dataset_scripts/label_pairs.py`: which negatives are drawn, who scores them, and that nothing else matters."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import PARITY, ROOT, run_script
from language_models import save_language_model
from scipy.stats import rankdata
from teachers import SAMPLING_RATE, make_clip, save_teacher

from modeling_xacle.data.pairs import check_rows, load_pairs, make_dataset, save_dataset
from modeling_xacle.judges.contrastive import ContrastiveTeacher, separation_auc
from modeling_xacle.judges.language_model import LanguageModelPipeline
from modeling_xacle.scoring import load_scorer

SCRIPT = ROOT / "dataset_scripts" / "label_pairs.py"
REPOSITORY = SCRIPT.parents[1]
SUBJECTS = ["a dog", "the dog", "a bell", "rain", "a loud bell", "the loud dog", "a quiet dog", "the bell", "the rain"]
VERBS = ["barks", "falls", "rings", "barks twice", "rings and falls"]
TEXTS = [f"{subject} {verb}" for subject in SUBJECTS for verb in VERBS]
functions = runpy.run_path(str(SCRIPT))


run = partial(run_script, SCRIPT)


def words(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """
    24 clips of train and 10 of test, some longer than the teacher's window, with one to three captions; captions that
    several clips share, or that differ in case and punctuation only.
    """
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 24, "test": 10}.items():
        rows = []
        for clip in range(count):
            path = folder / f"{split}{clip}.wav"
            soundfile.write(path, make_clip(generator.uniform(0.2, 2.5), clip), SAMPLING_RATE)
            texts = generator.choice(TEXTS[:30], 1 + clip % 3, replace=False)
            texts = [text.upper() + "!" if generator.random() < 0.2 else str(text) for text in texts]
            rows += [
                {"id": f"{split}{clip}-{n}", "audio": str(path), "text": text, "source": f"made{clip % 2}"}
                for n, text in enumerate(texts)
            ]
        splits[split] = make_dataset(rows)
    save_dataset(splits, folder / "aac")
    return folder / "aac"


@pytest.fixture(scope="module")
def labelled(corpus, teacher_folder, tmp_path_factory):
    """The corpus labelled by one process."""
    output = tmp_path_factory.mktemp("labelled") / "clap_pseudo"
    code, stdout, stderr = run(corpus, "--teacher", teacher_folder, "-o", output)
    assert code == 0, stderr
    return {"folder": output, "stdout": stdout, "splits": load_pairs(output)}


def tables(folder):
    return {split: dataset.to_dict() for split, dataset in load_pairs(folder).items()}


def assert_equal_tables(first, second, tolerance=1e-6):
    """Everything is equal, and labels but for rounding."""
    first, second = tables(first), tables(second)
    assert list(first) == list(second)
    for split, columns in first.items():
        np.testing.assert_allclose(columns.pop("label"), second[split].pop("label"), atol=tolerance, rtol=0)
        assert columns == second[split]


def check_negatives(original, labelled, count):
    """The promises about negatives, on any labelled dataset."""
    captions_of = {}
    for dataset in original.values():
        for row in dataset:
            captions_of.setdefault(row["audio"]["path"], set()).add(words(row["text"]))
    for split, dataset in labelled.items():
        rows = list(dataset)
        assert len(rows) == (count + 1) * len(original[split])
        known = {words(text) for text in original[split]["text"]}
        negatives_of = {}
        for row in rows:
            if row["is_negative"]:
                negatives_of.setdefault(row["audio"]["path"], []).append(words(row["text"]))
        for path, texts in negatives_of.items():
            assert not captions_of[path] & set(texts)
            assert set(texts) <= known
            assert len(set(texts)) == len(texts) == count * sum(row["audio"]["path"] == path for row in original[split])


def test_every_row_is_there_with_three_negatives_of_other_clips(corpus, labelled):
    original = load_pairs(corpus)
    for split, dataset in labelled["splits"].items():
        assert check_rows(dataset) == []
        positives = dataset.filter(lambda row: not row["is_negative"])
        for column in ("id", "text", "source"):
            assert positives[column][:] == original[split][column][:]
        assert [row["audio"]["path"] for row in positives] == [row["audio"]["path"] for row in original[split]]
    check_negatives(original, labelled["splits"], 3)


def test_labels_are_the_teachers_cosines_also_of_negatives(labelled, teacher_folder):
    teacher = ContrastiveTeacher.from_pretrained(teacher_folder)
    for dataset in labelled["splits"].values():
        for row in dataset.select(range(0, len(dataset), 5)):
            cosine = teacher.embed_audio([row["audio"]["path"]]) @ teacher.embed_text([row["text"]]).T
            assert row["label"] == pytest.approx(cosine.item(), abs=1e-5)
        negatives = dataset.filter(lambda row: row["is_negative"])["label"]
        assert np.std(negatives) > 0.01


def test_the_seed_and_nothing_else_decides_about_negatives(corpus, teacher_folder, labelled, tmp_path):
    options = [corpus, "--teacher", teacher_folder]
    run(*options, "-o", tmp_path / "same", "--shard-size", 5, "--batch-size", 3, "--num-workers", 2)
    assert_equal_tables(labelled["folder"], tmp_path / "same")
    run(*options, "-o", tmp_path / "other", "--seed", 1, "--embeddings", tmp_path / "same_embeddings")
    texts = [load_pairs(folder)["train"]["text"][:] for folder in (tmp_path / "same", tmp_path / "other")]
    assert texts[0] != texts[1]


def test_each_clip_and_each_distinct_caption_is_embedded_once(corpus, teacher_folder, tmp_path, monkeypatch):
    embedded = {"clips": 0, "captions": 0}
    embed_features, embed_text = ContrastiveTeacher.embed_features, ContrastiveTeacher.embed_text

    def count_clips(self, clips, batch_size=16):
        embedded["clips"] += len(clips)
        return embed_features(self, clips, batch_size)

    def count_captions(self, captions, batch_size=64):
        embedded["captions"] += len(captions)
        return embed_text(self, captions, batch_size)

    monkeypatch.setattr(ContrastiveTeacher, "embed_features", count_clips)
    monkeypatch.setattr(ContrastiveTeacher, "embed_text", count_captions)
    arguments = [corpus, "--teacher", teacher_folder, "-o", tmp_path / "out"]
    assert run(*arguments)[0] == 0
    texts = {row["text"] for dataset in load_pairs(corpus).values() for row in dataset}
    assert embedded == {"clips": 34, "captions": len(texts)}
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run(*arguments)[0] == 0
    assert embedded == {"clips": 34, "captions": len(texts)}
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_hard_negatives_are_near_and_keep_the_promises(corpus, teacher_folder, labelled, tmp_path):
    code, _, stderr = run(
        corpus, "--teacher", teacher_folder, "-o", tmp_path / "hard", "--hard", 2, "--hard-pool", 3, "--negatives", 2
    )
    assert code == 0, stderr
    original, hard = load_pairs(corpus), load_pairs(tmp_path / "hard")
    check_negatives(original, hard, 2)
    teacher = ContrastiveTeacher.from_pretrained(teacher_folder)

    def mean_similarity(dataset):
        positive, similarities = None, []
        for row in dataset:
            embedding = teacher.embed_text([row["text"]])[0]
            if row["is_negative"]:
                similarities.append(float(embedding @ positive))
            else:
                positive = embedding
        return np.mean(similarities)

    assert mean_similarity(hard["train"]) > mean_similarity(labelled["splits"]["train"]) + 0.1


def test_too_few_other_captions_are_an_error(corpus, teacher_folder, tmp_path):
    code, _, stderr = run(corpus, "--teacher", teacher_folder, "-o", tmp_path / "out", "--negatives", 40)
    assert code == 1 and "lower --negatives" in stderr
    assert not (tmp_path / "out").exists()


def test_without_negatives_there_are_positives_only(corpus, teacher_folder, tmp_path):
    code, stdout, stderr = run(corpus, "--teacher", teacher_folder, "-o", tmp_path / "out", "--negatives", 0)
    assert code == 0, stderr
    assert "AUC of positives against negatives: train nan" in stdout
    assert len(load_pairs(tmp_path / "out", "train")) == len(load_pairs(corpus, "train"))


def combine(*cosines):
    return functions["combine_teachers"](np.array(cosines))


def test_labels_of_several_teachers_are_in_range_and_ordered_as_the_mean_of_their_z_scores():
    generator = np.random.default_rng(0)
    first, second = generator.uniform(-0.1, 0.4, 500), np.clip(generator.normal(0.9, 0.1, 500), -1, 1)
    labels = combine(first, second)
    z_scores = sum((scores - scores.mean()) / scores.std() for scores in (first, second))
    assert (np.argsort(labels) == np.argsort(z_scores)).all()
    assert labels.min() >= -1 and labels.max() <= 1
    assert labels.mean() == pytest.approx((first.mean() + second.mean()) / 2)
    assert (combine(first) == first).all()
    np.testing.assert_allclose(combine(first, first), first, atol=1e-12)
    with pytest.raises(ValueError, match="same score"):
        combine(first, np.full(500, 0.5))


def test_labels_that_would_leave_the_range_are_shrunk_not_clipped():
    generator = np.random.default_rng(0)
    first = np.append(generator.uniform(-0.9, 0.9, 100), 1.0)
    second = np.append(generator.normal(0.5, 0.001, 100), 1.0)
    labels = combine(first, second)
    assert labels.max() == pytest.approx(1) and np.unique(labels).size == 101


def test_several_teachers_are_averaged_and_reported(corpus, teacher_folder, labelled, tmp_path):
    other = save_teacher(tmp_path / "other", seed=1)
    options = ["--teacher", teacher_folder, "--teacher", other, "--processor", "", "--processor", teacher_folder]
    code, stdout, stderr = run(corpus, *options, "-o", tmp_path / "both")
    assert code == 0, stderr
    run(corpus, "--teacher", other, "-o", tmp_path / "alone")
    both, alone = load_pairs(tmp_path / "both"), load_pairs(tmp_path / "alone")
    first = np.concatenate([dataset["label"] for dataset in labelled["splits"].values()])
    second = np.concatenate([dataset["label"] for dataset in alone.values()])
    labels = np.concatenate([dataset["label"] for dataset in both.values()])
    np.testing.assert_allclose(labels, combine(first, second), atol=1e-5)
    assert both["train"]["text"][:] == alone["train"]["text"][:]
    assert stdout.count(f"| {other} |") == 1
    assert run(corpus, "--teacher", other, "--processor", "", "--processor", "", "-o", tmp_path / "x")[0] == 1


@pytest.fixture(scope="module")
def asked_folder(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def asked(corpus, asked_folder, tmp_path_factory):
    """The corpus labelled by a language model."""
    output = tmp_path_factory.mktemp("asked") / "out"
    code, _, stderr = run(corpus, "--teacher", asked_folder, "-o", output, "--negatives", 1)
    assert code == 0, stderr
    return output


@pytest.mark.parametrize("kind", ["language model", "xacle"])
def test_a_teacher_that_is_asked_labels_each_pair(kind, corpus, asked, asked_folder, model_folder, tmp_path):
    """A share of yes from 0 to 1, or a score from 0 to 10, becomes a label from -1 to 1."""
    folder, teacher = (asked, asked_folder) if kind == "language model" else (tmp_path / "out", model_folder)
    if kind == "xacle":
        assert run(corpus, "--teacher", teacher, "-o", folder, "--negatives", 1)[0] == 0
    align, scale = load_scorer(teacher, "cpu"), 0.5 if kind == "language model" else 5
    check_negatives(load_pairs(corpus), load_pairs(folder), 1)
    for row in load_pairs(folder, "train").select(range(0, 80, 9)):
        score = align({"audio": row["audio"]["path"], "text": row["text"]})["score"]
        assert row["label"] == pytest.approx(score / scale - 1, abs=1e-4)


def test_a_killed_teacher_is_asked_only_what_is_missing(corpus, asked, asked_folder, tmp_path, monkeypatch):
    options = [corpus, "--teacher", asked_folder, "--negatives", 1, "--shard-size", 20, "-o"]
    assert run(*options, tmp_path / "out", "--batch-size", 3, "--num-workers", 2)[0] == 0
    assert_equal_tables(asked, tmp_path / "out", tolerance=1e-5)
    shards = sorted((tmp_path / "out_embeddings").rglob("pairs-*.safetensors"))
    assert len(shards) > 4
    shards[2].unlink()
    counted, forward = [], LanguageModelPipeline._ask
    monkeypatch.setattr(
        LanguageModelPipeline, "_ask", lambda self, pairs: counted.extend(pairs) or forward(self, pairs)
    )
    assert run(*options, tmp_path / "again", "--embeddings", tmp_path / "out_embeddings")[0] == 0
    windows = len(counted) - 1  # one is silence, to try the model
    assert 20 <= windows <= 60  # a clip has up to three
    assert_equal_tables(tmp_path / "out", tmp_path / "again", tolerance=1e-5)
    other = ["--question", "a {caption} ?", "--embeddings", tmp_path / "out_embeddings"]
    assert run(*options, tmp_path / "other", *other)[0] == 0
    texts = [load_pairs(tmp_path / name)["train"] for name in ("out", "other")]
    assert texts[0]["text"][:] == texts[1]["text"][:] and texts[0]["label"][:] != texts[1]["label"][:]


def test_teachers_of_two_kinds_are_averaged_by_their_ranks(corpus, teacher_folder, asked_folder, tmp_path):
    both = ["--teacher", teacher_folder, "--teacher", asked_folder]
    for name, options in (("one", both[:2]), ("two", both[2:]), ("both", [*both, "--average", "rank"])):
        options += ["--negatives", 1, "--embeddings", tmp_path / "kept"]
        code, _, stderr = run(corpus, *options, "-o", tmp_path / name)
        assert code == 0, stderr
    one, two, joint = (
        np.concatenate([dataset["label"] for dataset in load_pairs(tmp_path / name).values()])
        for name in ("one", "two", "both")
    )
    ranks = (rankdata(one) + rankdata(two)) / 2
    np.testing.assert_allclose(joint, 2 * (ranks - 1) / (len(ranks) - 1) - 1, atol=0.05)  # twins may change places
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [row["teacher"] for row in report["teachers"]] == [str(teacher_folder), str(asked_folder)]


def test_ranks_do_not_mind_a_teacher_that_crowds_at_the_ends():
    generator = np.random.default_rng(0)
    first = generator.uniform(-1, 1, 101)
    labels = functions["combine_teachers"](np.array([first, np.tanh(9 * first)]), "rank")
    np.testing.assert_allclose(labels, 2 * (rankdata(first) - 1) / 100 - 1, atol=1e-12)


def test_clips_that_a_teacher_that_is_asked_cannot_read_are_listed(damaged, asked_folder, tmp_path):
    soundfile.write(tmp_path / "gone.wav", make_clip(0.5), SAMPLING_RATE)
    options = [damaged, "--teacher", asked_folder, "--negatives", 1, "-o", tmp_path / "out"]
    code, _, stderr = run(*options)
    assert code == 1 and "broken.wav" in stderr and "--allow-missing" in stderr
    code, stdout, stderr = run(*options, "--allow-missing")
    assert code == 0, stderr
    lost = [row["id"] for row in load_pairs(damaged)["train"] if row["audio"]["path"].endswith("broken.wav")]
    assert lost and f"rows left out: {len(lost)}" in stdout
    assert not set(lost) & set(load_pairs(tmp_path / "out")["train"]["id"][:])


def test_the_report_says_how_the_labels_are_distributed(labelled):
    report = json.loads((labelled["folder"] / "report.json").read_text())
    for split, dataset in labelled["splits"].items():
        label, negative = np.array(dataset["label"]), np.array(dataset["is_negative"])
        positives, negatives = label[~negative], label[negative]
        brute_force = np.mean((positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives))
        assert report["AUC"][split] == pytest.approx(brute_force, abs=1e-3)
        assert separation_auc(positives, negatives) == pytest.approx(brute_force)
        rows = {row["kind"]: row for row in report["labels"] if row["split"] == split}
        assert (rows["positives"]["pairs"], rows["negatives"]["pairs"]) == (len(positives), len(negatives))
        assert rows["negatives"]["median"] == pytest.approx(np.median(negatives), abs=1e-4)
    card = (labelled["folder"] / "README.md").read_text()
    assert f"train {report['AUC']['train']}" in card and f"train {report['AUC']['train']}" in labelled["stdout"]
    assert (labelled["folder"] / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_embedded_sounds_stay_embedded(corpus, teacher_folder, labelled, tmp_path):
    save_dataset(load_pairs(corpus), tmp_path / "aac", embed_audio=True)
    code, _, stderr = run(tmp_path / "aac", "--teacher", teacher_folder, "-o", tmp_path / "out")
    assert code == 0, stderr
    result = load_pairs(tmp_path / "out", "train")
    assert all(row["audio"]["bytes"] for row in result)
    np.testing.assert_allclose(result["label"], labelled["splits"]["train"]["label"], atol=1e-6)


@pytest.fixture
def damaged(corpus, tmp_path):
    """The corpus with one clip gone and one that is no sound."""
    splits = load_pairs(corpus)
    gone, broken = (splits["train"][row]["audio"]["path"] for row in (0, 4))

    def redirect(row):
        path = Path(row["audio"]["path"])
        path = {gone: tmp_path / "gone.wav", broken: tmp_path / "broken.wav"}.get(str(path), path)
        return {**row, "audio": str(path)}

    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    damaged = {split: make_dataset(map(redirect, dataset)) for split, dataset in splits.items()}
    save_dataset(damaged, tmp_path / "aac")
    return tmp_path / "aac"


def test_missing_and_broken_clips_are_listed_and_errors_unless_allowed(damaged, teacher_folder, tmp_path):
    options = [damaged, "--teacher", teacher_folder, "-o", tmp_path / "out"]
    code, _, stderr = run(*options)
    assert code == 1 and "gone.wav" in stderr and "--allow-missing" in stderr
    soundfile.write(tmp_path / "gone.wav", make_clip(0.5), SAMPLING_RATE)
    code, _, stderr = run(*options)
    assert code == 1 and "broken.wav" in stderr and "gone.wav" not in stderr and "--allow-missing" in stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "gone.wav").unlink()
    code, stdout, stderr = run(*options, "--allow-missing")
    assert code == 0, stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    original, result = load_pairs(damaged), load_pairs(tmp_path / "out")
    lost = [row["id"] for row in original["train"] if Path(row["audio"]["path"]).parent == tmp_path]
    assert [line.split(": ")[1] for line in report["left_out"]] == lost
    assert f"rows left out: {len(lost)}" in stdout
    assert len(result["train"]) == 4 * (len(original["train"]) - len(lost))


def test_wrong_use_ends_in_one_line(corpus, teacher_folder, model_folder, tmp_path):
    wrong = {
        "neither a dataset folder nor": [tmp_path / "nothing", "--teacher", teacher_folder],
        "type qwen2; xacle, xacle_dual_encoder, clap": [corpus, "--teacher", PARITY / "llm"],
        "--hard needs a contrastive teacher": [corpus, "--teacher", model_folder, "--hard", "1"],
        "--question is for audio language models": [corpus, "--teacher", model_folder, "--question", "hears"],
        "--hard 3 is more than --negatives 3 or --hard-pool 2": [
            corpus,
            "--teacher",
            teacher_folder,
            "--hard",
            "3",
            "--hard-pool",
            "2",
        ],
        "choose another output": [corpus, "--teacher", teacher_folder, "-o", teacher_folder],
    }
    for message, arguments in wrong.items():
        code, _, stderr = run("-o", tmp_path / "out", *arguments)
        assert code == 1 and message in stderr and "Traceback" not in stderr
    assert run(corpus, "-o", tmp_path / "out")[0] == 2


KILLED_WHILE_WRITING = """
import os, runpy, signal, sys
import modeling_xacle.judges.embeddings as embeddings
save_file, written = embeddings.save_file, []
def save_half_the_fourth(tensors, path, metadata=None):
    save_file(tensors, path, metadata=metadata)
    written.append(path)
    if len(written) == 4:
        os.truncate(path, 60)
        os.kill(os.getpid(), signal.SIGKILL)
embeddings.save_file = save_half_the_fourth
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_run_continues_where_it_stopped(corpus, teacher_folder, labelled, tmp_path, monkeypatch):
    options = [str(corpus), "--teacher", str(teacher_folder), "-o", str(tmp_path / "out"), "--shard-size", "5"]
    start = f"import sys; sys.argv = {[str(SCRIPT), *options]!r}; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code = start + KILLED_WHILE_WRITING
    killed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "out_embeddings").rglob("*.safetensors")}
    assert len(done) == 3
    clips = []
    embed_features = ContrastiveTeacher.embed_features

    def count(self, features, batch_size=16):
        clips.extend(features)
        return embed_features(self, features, batch_size)

    monkeypatch.setattr(ContrastiveTeacher, "embed_features", count)
    code, _, stderr = run(*options)
    assert code == 0, stderr
    assert len(clips) == 34 - 15
    assert done.items() <= {file: file.stat().st_mtime_ns for file in (tmp_path / "out_embeddings").rglob("*")}.items()
    assert not list((tmp_path / "out_embeddings").rglob("*.partial"))
    assert_equal_tables(labelled["folder"], tmp_path / "out")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes of this test would share one accelerator")
def test_two_processes_give_what_one_gives(corpus, teacher_folder, asked_folder, tmp_path):
    teachers = ["--teacher", teacher_folder, "--teacher", asked_folder]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [SCRIPT, corpus, *teachers, "-o", tmp_path / "two", "--shard-size", "5", "--hard", "2"]
    result = subprocess.run(
        [sys.executable, *launch, *map(str, script)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stderr
    assert result.stdout.count("AUC of positives") == 1
    run(corpus, *teachers, "-o", tmp_path / "one", "--hard", 2)
    assert_equal_tables(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    assert len(list((tmp_path / "two_embeddings").rglob("clips-*.safetensors"))) == 7


def test_help():
    code, stdout, _ = run("--help")
    assert code == 0 and "--allow-missing" in stdout and "--hard-pool" in stdout


def test_an_output_that_cannot_be_replaced_is_refused_before_any_work(corpus, teacher_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, _, stderr = run(corpus, "--teacher", teacher_folder, "-o", tmp_path / "out")
    assert code == 1
    assert "exists and was not written by this command" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
