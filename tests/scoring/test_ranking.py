"""Many sounds against many captions: the same scores as pair by pair, each sound encoded once, and the pictures."""

import csv
import json
import math

import numpy as np
import pytest
from conftest import PARITY
from PIL import Image
from teachers import save_teacher

from modeling_xacle.data.tables import FORMATS, read_table
from modeling_xacle.scoring import ranking
from modeling_xacle.scoring.ranking import draw_heat_map, list_audio, rank_pairs, read_texts, score_matrix
from modeling_xacle.scoring.scorer import load_scorer

CLIPS = [str(PARITY / "wav" / name) for name in ("b_16k_3s.wav", "e_8k_4s.flac", "c_44k_stereo_12s.wav")]
TEXTS = ["A dog barks", "beep", "Rain on a tin roof, and then thunder"]


@pytest.fixture
def encoded(align, monkeypatch):
    """Numbers of clips in each pass through the encoder."""
    batches = []
    encode = align.model.get_audio_features
    monkeypatch.setattr(
        align.model,
        "get_audio_features",
        lambda input_features, *mask: batches.append(len(input_features)) or encode(input_features),
    )
    return batches


def test_matrix_equals_the_pipeline_pair_by_pair_and_encodes_each_clip_once(align, encoded):
    scores = score_matrix(align, CLIPS, TEXTS, batch_size=2)
    assert sum(encoded) == len(CLIPS)
    assert (scores.shape, scores.dtype) == ((3, 3), np.float64)
    for row, clip in enumerate(CLIPS):
        for column, text in enumerate(TEXTS):
            assert scores[row, column] == pytest.approx(align({"audio": clip, "text": text})["score"], abs=1e-4)


def test_what_comes_twice_is_computed_once(align, encoded):
    scores = score_matrix(align, [CLIPS[0], CLIPS[1], CLIPS[0]], ["beep", "A dog", "beep"])
    assert sum(encoded) == 2
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    assert (scores[0] != scores[1]).all()


def test_matrix_takes_samples_and_no_order_changes_it(align, noise):
    clips = [{"array": samples, "sampling_rate": 16000} for samples in noise[:3]]
    scores = score_matrix(align, clips, TEXTS)
    turned = score_matrix(align, clips[::-1], TEXTS[::-1], batch_size=1)
    np.testing.assert_allclose(turned[::-1, ::-1], scores, atol=1e-4)


def test_matrix_tells_what_was_cut(align, monkeypatch):
    told = []
    monkeypatch.setattr(ranking.logger, "warning", told.append)
    score_matrix(align, CLIPS, TEXTS)
    assert told == [f"{CLIPS[2]}: cut: 12.3 s to 10 s"]


@pytest.mark.parametrize(
    ("audios", "texts", "message"),
    [
        ([], TEXTS, "0 sounds and 3 captions"),
        (CLIPS, [], "3 sounds and 0 captions"),
        (CLIPS, ["beep", " "], "The caption is empty"),
        ([CLIPS[0], "gone.wav"], TEXTS, "gone.wav: no such audio file"),
    ],
)
def test_what_cannot_be_scored_is_refused(audios, texts, message, align):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        score_matrix(align, audios, texts)


def test_matrix_of_a_clap_model(tmp_path):
    score = load_scorer(save_teacher(tmp_path), "cpu")
    texts = ["a dog barks", "rain falls"]
    scores = score_matrix(score, CLIPS, texts)
    expected = [[score({"audio": clip, "text": text})["score"] for text in texts] for clip in CLIPS]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (np.abs(scores) <= 1).all()


def test_rank_is_the_matrix_in_order(align):
    scores = score_matrix(align, CLIPS, TEXTS)
    by_clip = rank_pairs(align, CLIPS, [TEXTS[0]])
    assert [CLIPS.index(pair["audio"]) for pair in by_clip] == np.argsort(-scores[:, 0]).tolist()
    by_text = rank_pairs(align, [CLIPS[0]], TEXTS)
    assert [TEXTS.index(pair["text"]) for pair in by_text] == np.argsort(-scores[0]).tolist()
    assert [pair["rank"] for pair in by_text] == [1, 2, 3]
    assert by_text[0]["notes"] == ["padded: 3.1 s to 10 s"]


def test_equal_scores_stay_in_the_given_order(align):
    assert [pair["audio"] for pair in rank_pairs(align, [CLIPS[0]] * 2 + CLIPS[:1], ["beep"])] == [CLIPS[0]] * 3
    texts = ["beep", "beep"]
    assert [pair["rank"] for pair in rank_pairs(align, CLIPS[:1], texts)] == [1, 2]


def test_captions_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffA dog\n\n  Rain, hail \nA dog\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text('caption,x\nA dog,1\n"Rain, hail",2\nA dog,3\n')
    assert read_texts(tmp_path / "a.txt") == read_texts(tmp_path / "b.csv") == ["A dog", "Rain, hail"]
    for content, message in [(b"\n \n", "has no captions"), (b"caf\xe9", "not UTF-8")]:
        (tmp_path / "c.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_texts(tmp_path / "c.txt")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "gone.txt")


def test_sounds_of_a_folder(tmp_path):
    assert [path.name[0] for path in list_audio(PARITY / "wav")] == list("abcde")
    for folder, message in [(tmp_path, "no sounds in it"), (tmp_path / "gone", "no such folder")]:
        with pytest.raises(ValueError, match=message):
            list_audio(folder)


@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (61, 2)])
def test_heat_map_shows_its_scores(shape, tmp_path):
    scores = np.random.default_rng(0).uniform(0, 10, shape)
    names = [f"costs $5 or $6_{index}" * 9 for index in range(70)]  # no formulas, and too long
    draw_heat_map(scores, names[: shape[0]], names[: shape[1]], tmp_path / "map.png")
    image = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(image, axis=0)) > min(scores.size, 30)
    assert len(image) < 4e7


def test_a_picture_of_no_known_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"map\.txt: a picture.s name must end in \.png, \.pdf, \.svg"):
        draw_heat_map(np.ones((1, 1)), ["a"], ["b"], tmp_path / "map.txt")


def test_rank_command(model_folder, xacle):
    lines = xacle("rank", *CLIPS, "--text", "beep", "--model", model_folder, "--device", "cpu").splitlines()
    assert sorted(line.split("\t")[2] for line in lines) == sorted(CLIPS)
    texts = [argument for text in TEXTS for argument in ("--text", text)]
    best = json.loads(xacle("rank", CLIPS[0], *texts, "--top", 2, "--json", "--model", model_folder))
    assert [pair["rank"] for pair in best] == [1, 2]
    assert best[0]["score"] >= best[1]["score"]
    assert {pair["text"] for pair in best} < set(TEXTS)


def test_matrix_command(model_folder, align, tmp_path, xacle):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    common = ["--texts", tmp_path / "texts.txt", "--model", model_folder, "--device", "cpu"]
    output, picture = tmp_path / "new" / "matrix.csv", tmp_path / "matrix.png"
    text = xacle("matrix", *CLIPS, *common, "-o", output, "--heat-map", picture)
    assert text == f"3 sounds with 3 captions scored: {output}\n"
    header, *rows = csv.reader(output.open(newline=""))
    assert header == ["audio", *TEXTS]
    assert [row[0] for row in rows] == CLIPS
    expected = score_matrix(align, CLIPS, TEXTS)
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], expected, atol=1e-4)
    assert picture.stat().st_size > 5000
    assert xacle("matrix", *CLIPS, *common).replace("\r", "") == output.read_text()
    printed = json.loads(xacle("matrix", "--audio-dir", PARITY / "wav", *common, "--json"))
    assert np.shape(printed["scores"]) == (len(printed["audio"]), len(printed["text"])) == (5, 3)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_matrix_is_written_in_the_format_that_its_suffix_names(suffix, tmp_path, xacle):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    output = tmp_path / f"matrix{suffix}"
    xacle("matrix", *CLIPS[:2], "--texts", tmp_path / "texts.txt", "--device", "cpu", "-o", output)
    columns, rows = read_table(output)
    rows = [row for _, row in rows]
    assert columns == ["audio", *TEXTS] and [row["audio"] for row in rows] == CLIPS[:2]
    assert all(math.isfinite(float(row[text])) for row in rows for text in TEXTS)


def test_a_caption_with_the_name_of_the_first_column_is_refused_in_a_table_only(tmp_path, xacle):
    (tmp_path / "texts.txt").write_text("audio\nrain")
    arguments = ["matrix", CLIPS[0], "--texts", tmp_path / "texts.txt", "--device", "cpu"]
    assert "the name of the table's first column" in xacle(*arguments, expect=1)
    assert json.loads(xacle(*arguments, "--json"))["text"] == ["audio", "rain"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rank", *CLIPS, "--text", "a", "--text", "b"], 2, "xacle matrix"),
        (["rank", CLIPS[0]], 2, "--text"),
        (["rank", "gone.wav", "--text", "a"], 1, "gone.wav: no such audio file"),
        (["rank", CLIPS[0], "--text", " "], 1, "The caption is empty"),
        (["rank", CLIPS[0], "--text", "a", "--device", "foo"], 2, "--device foo"),
        (["matrix", "--texts", "t.txt"], 2, "either sounds or --audio-dir"),
        (["matrix", CLIPS[0], "--audio-dir", ".", "--texts", "t.txt"], 2, "either sounds or --audio-dir"),
        (["matrix", CLIPS[0], "--texts", "gone.txt"], 1, "gone.txt"),
        (["matrix", CLIPS[0], "--texts", "gone.txt", "--heat-map", "map.doc"], 1, "map.doc: a picture"),
    ],
)
def test_mistakes_of_the_commands(arguments, code, message, xacle):
    assert message in " ".join(xacle(*arguments, expect=code).split())


@pytest.mark.parametrize(
    ("command", "words"), [("rank", ["--text", "--top"]), ("matrix", ["--texts", "--audio-dir", "--heat-map"])]
)
def test_help(command, words, xacle):
    text = xacle(command, "--help")
    assert all(word in text for word in [*words, "--model", "--device", "--json"])
