"""`xacle fit-ensemble`: from rated pairs and members to a folder that scores, and a report that is out of fold."""

import csv
import json

import numpy as np
import pytest
import soundfile
from teachers import CAPTIONS, make_clip, save_teacher

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.evaluation.ensemble import fit_nnls, grouped_folds
from modeling_xacle.scoring import load_scorer

NUM_CLIPS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two CLAPs beside the bundled model, and rated pairs, two a clip, of two generators."""
    folder = tmp_path_factory.mktemp("world")
    save_teacher(folder / "clap")
    save_teacher(folder / "other", seed=1)
    generator, lines = np.random.default_rng(0), ["wav_file_name,text,average_score,model_id"]
    for number in range(NUM_CLIPS):
        soundfile.write(folder / f"{number}.wav", make_clip(0.5 + generator.random(), number), 16000)
        for text in CAPTIONS[:2]:
            lines.append(f"{number}.wav,{text},{generator.uniform(0, 10):.2f},generator {number % 2}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def members(world, *names):
    paths = [DEFAULT_MODEL if name == "tiny" else world / name for name in names]
    return [part for path in paths for part in ("--model", path)]


def run(xacle, world, output, *more, names=("tiny", "clap", "other")):
    return xacle("fit-ensemble", world / "pairs.csv", *members(world, *names), "-o", output, *more)


def rows_of(world):
    with open(world / "pairs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_weights_are_those_of_all_pairs_and_figures_are_out_of_fold(world, tmp_path, xacle):
    told = run(xacle, world, tmp_path / "e", "--folds", 4, "--resamples", 50, "--unseen-generators", "--json")
    report, rows = json.loads(told), rows_of(world)
    pairs = [{"audio": str(world / row["wav_file_name"]), "text": row["text"]} for row in rows]
    targets = np.array([float(row["average_score"]) for row in rows])
    models = [DEFAULT_MODEL, world / "clap", world / "other"]
    alone = np.array([[result["score"] for result in load_scorer(model, "cpu")(pairs)] for model in models])
    fitted = fit_nnls(alone, targets)
    found = [result["score"] for result in load_scorer(tmp_path / "e", "cpu")(pairs)]
    np.testing.assert_allclose(found, fitted.predict(alone), atol=2e-3)
    folds, combined = grouped_folds([row["wav_file_name"] for row in rows], 4), np.empty(len(rows))
    for fold in range(4):
        out = folds == fold
        combined[out] = fit_nnls(alone[:, ~out], targets[~out]).predict(alone[:, out])
    assert report["metrics"]["ensemble"]["MSE"] == pytest.approx(np.mean((combined - targets) ** 2), abs=0.01)
    assert report["metrics"]["clap"]["MSE"] is None and report["metrics"]["xacle-tiny"]["MSE"] > 0
    assert (report["pairs"], report["clips"]) == (2 * NUM_CLIPS, NUM_CLIPS)
    assert set(report["unseen_generators"]["generators"]) == {"generator 0", "generator 1"}


def test_the_card_tells_members_data_and_figures(world, tmp_path, xacle):
    told = run(xacle, world, tmp_path / "e", "--method", "zscore", "--resamples", 50, names=("clap", "other"))
    card = (tmp_path / "e" / "README.md").read_text()
    figures, _, last = told.partition("\n2 models combined by zscore, fitted on ")
    assert f"```text\n{figures}```" in card and "the mean of their standardised scores" in card
    assert last.strip().endswith(f"(16 pairs of 8 clips): {tmp_path / 'e'}") and str(world / "pairs.csv") in card
    assert f"| clap | {world / 'clap'} |  | cosine | " in card


def test_a_gate_is_fitted_saved_and_the_same_again(world, tmp_path, xacle):
    for name in ("e", "again"):
        run(xacle, world, tmp_path / name, "--method", "gate", "--resamples", 50, "--copy-members", "--seed", 3)
    one, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("e", "again"))
    assert one == again
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert [member["model"] for member in config["members"]] == ["members/0", "members/1", "members/2"]
    assert config["feature_size"] == load_scorer(DEFAULT_MODEL, "cpu").model.config.audio_config.hidden_size
    align = load_scorer(tmp_path / "e", "cpu")
    pairs = [{"audio": str(world / row["wav_file_name"]), "text": row["text"]} for row in rows_of(world)]
    together = [result["score"] for result in align(pairs, batch_size=5)]
    np.testing.assert_allclose(together, [align(pair)["score"] for pair in pairs], atol=1e-4)
    assert len(set(together)) == len(pairs)


def test_a_dataset_that_holds_its_sounds_is_fitted_on_by_their_content(world, tmp_path, xacle):
    rows = [
        {"id": str(number), "audio": str(world / row["wav_file_name"]), "text": row["text"], "score": number % 11}
        for number, row in enumerate(rows_of(world))
    ]
    save_dataset({"train": make_dataset(rows)}, tmp_path / "data", embed_audio=True)
    chosen = [*members(world, "clap", "other"), "--resamples", 20, "--json"]
    report = json.loads(xacle("fit-ensemble", tmp_path / "data", *chosen, "-o", tmp_path / "e"))
    assert (report["pairs"], report["clips"]) == (2 * NUM_CLIPS, NUM_CLIPS)


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (("tiny", "clap"), ["--method", "mean"], "xacle-tiny scores by 0-10, clap scores by cosine"),
        (("clap",), [], "at least 2 models, each named once"),
        (("clap", "nowhere/at/all"), [], "there is no such folder"),
        (("clap", "other"), ["--folds", 9], "9 folds of 8 clips cannot be made"),
        (("clap", "other"), ["--reference-column", "text"], "line 2: text is 'a dog barks', not a rating from 0 to 10"),
        (("clap", "other"), ["--reference-column", "rating"], "no column rating; it has wav_file_name"),
    ],
)
def test_mistakes_are_told_in_a_sentence(names, more, words, world, tmp_path, xacle):
    command = ["fit-ensemble", world / "pairs.csv", *members(world, *names), "-o", tmp_path / "e", *more]
    message = xacle(*command, expect=1)
    assert words in message and message.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_nothing_is_written_over_and_no_member_into(world, tmp_path, xacle):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine.txt").touch()
    command = ["fit-ensemble", world / "pairs.csv", *members(world, "clap", "other"), "-o"]
    assert "exists already" in xacle(*command, tmp_path / "e", expect=1)
    assert "would be written into the input" in xacle(*command, world / "clap" / "e", expect=1)


def test_a_pair_without_a_generator_is_named(world, tmp_path, xacle):
    text = (world / "pairs.csv").read_text().replace("generator 1", "", 1)
    (world / "gaps.csv").write_text(text)
    command = ["fit-ensemble", world / "gaps.csv", *members(world, "clap", "other"), "-o", tmp_path / "e"]
    assert "line 4: model_id is empty" in xacle(*command, "--unseen-generators", expect=1)
