"""Audio language models that are asked yes or no: what the score is, and that nothing else decides about it."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import PARITY
from language_models import LONGEST, SPECIAL, WORDS, make_model, make_processor, save_language_model
from teachers import CAPTIONS, SAMPLING_RATE, make_clip
from transformers import AutoTokenizer
from transformers.utils import logging

from modeling_xacle.data.sources import PairSource
from modeling_xacle.judges.language_model import (
    DEFAULT_QUESTIONS,
    QUESTIONS,
    LanguageModelPipeline,
    answer_tokens,
    choose_questions,
)
from modeling_xacle.scoring import TableOptions, load_scorer, score_matrix, score_table
from modeling_xacle.scoring.scorer import scorer_settings, scorer_signature

FAMILIES = ["qwen2_audio", "audioflamingo3"]


@pytest.fixture(scope="module", params=FAMILIES)
def judge(request):
    return LanguageModelPipeline(make_model(request.param), make_processor(request.param), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Shorter than a window, longer, and far too short."""
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate((0.7, 2.6, 0.03, 1.0)):
        soundfile.write(folder / f"{number}.wav", make_clip(seconds, number), SAMPLING_RATE)
    return [str(folder / f"{number}.wav") for number in range(4)]


def by_hand(judge, sound, question):
    """The score by one prompt alone, without padding and hooks."""
    content = [{"type": "audio", "audio": sound}, {"type": "text", "text": question}]
    inputs = judge.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        shares = judge.model(**inputs).logits[0, -1].softmax(-1)
    yes, no = (
        sum(shares[len(SPECIAL) + WORDS.index(word)] for word in words)
        for words in (("yes", "Yes"), ("no", "No", "NO"))
    )
    return (yes / (yes + no)).item()


def test_a_score_is_the_share_of_yes_of_the_next_token(judge):
    sound = make_clip(0.8)
    for caption in CAPTIONS:
        expected = by_hand(judge, sound, QUESTIONS["describes"].replace("{caption}", caption))
        found = judge({"audio": sound, "text": caption, "sampling_rate": SAMPLING_RATE})
        assert found == {"score": pytest.approx(expected, abs=1e-6)}


def test_a_pair_has_one_score_in_any_company(judge, sounds):
    inputs = [{"audio": sound, "text": [*CAPTIONS, "rain " * 40]} for sound in sounds]
    together = [[found["score"] for found in results] for results in judge(inputs, batch_size=64)]
    alone = [[judge({**pair, "text": text})["score"] for text in pair["text"]] for pair in inputs]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 0.1 and np.ptp(together, axis=0).min() > 1e-3 and np.ptp(together, axis=1).min() > 1e-3


def test_all_of_a_long_sound_counts():
    judge = LanguageModelPipeline(make_model(), make_processor(), device="cpu")
    sound = make_clip(2.5)
    [found] = judge({"audio": sound, "text": ["rain"], "sampling_rate": SAMPLING_RATE}, return_windows=True)
    starts = (0, 16000, 32000)
    parts = [
        by_hand(judge, sound[at : at + 16000], QUESTIONS["describes"].replace("{caption}", "rain")) for at in starts
    ]
    assert [window["score"] for window in found["windows"]] == pytest.approx(parts, abs=1e-5)
    assert found["score"] == pytest.approx(np.dot(parts, [0.4, 0.4, 0.2]), abs=1e-5)
    assert found["notes"] == ["windowed: 2.5 s in windows of 1 s"]
    with pytest.raises(ValueError, match="in its own windows"):
        judge({"audio": sound, "text": "rain", "sampling_rate": SAMPLING_RATE}, window_seconds=1)


def test_a_processor_that_takes_more_than_its_extractor_is_given_more():
    judge = LanguageModelPipeline(make_model("audioflamingo3"), make_processor("audioflamingo3"), device="cpu")
    for seconds, windows in ((2.5, 1), (LONGEST + 1, 2)):
        pair = {"audio": make_clip(seconds), "text": ["rain"], "sampling_rate": SAMPLING_RATE}
        [found] = judge(pair, return_windows=True)
        assert len(found["windows"]) == windows
    assert found["notes"] == ["windowed: 4 s in windows of 3 s"]


def test_what_is_added_and_left_out_is_told(judge, sounds):
    results = [judge({"audio": sound, "text": "rain"}).get("notes", []) for sound in sounds]
    assert results[2] == ["padded: 0.03 s to 0.1 s"]
    assert results[0] == results[3] == []
    little_more = make_clip(judge.window_samples / SAMPLING_RATE + 0.005)
    found = judge({"audio": little_more, "text": "rain", "sampling_rate": SAMPLING_RATE})
    assert found["notes"] == [
        f"cut: {len(little_more) / SAMPLING_RATE:g} s to {judge.window_samples // SAMPLING_RATE} s"
    ]


def test_several_questions_are_averaged(judge):
    pair = {"audio": make_clip(0.8), "text": "rain falls", "sampling_rate": SAMPLING_RATE}

    def ask(*questions):
        return LanguageModelPipeline(judge.model, judge.processor, questions, device="cpu")(pair)["score"]

    one, other = ask("describes"), ask("a {caption} or {caption} ?")
    assert abs(one - other) > 1e-3
    assert ask("describes", "a {caption} or {caption} ?") == pytest.approx((one + other) / 2, abs=1e-6)
    assert judge(pair)["score"] == pytest.approx(one, abs=1e-6)
    mapped = LanguageModelPipeline(judge.model, judge.processor, map_score=True, device="cpu")
    assert mapped(pair)["score"] == pytest.approx(10 * one, abs=1e-5)


def test_a_caption_with_braces_is_asked_about_as_it_is(judge):
    pair = {"audio": make_clip(0.8), "text": "{caption} {0} rain", "sampling_rate": SAMPLING_RATE}
    expected = by_hand(judge, pair["audio"], QUESTIONS["describes"].replace("{caption}", pair["text"]))
    assert judge(pair)["score"] == pytest.approx(expected, abs=1e-6)


def test_all_spellings_of_an_answer_that_are_one_token_count():
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llm")
    tokenizer.add_tokens([" yes", "Yes", "nope"])
    assert tokenizer.convert_ids_to_tokens(answer_tokens(tokenizer, "yes")) == [" yes", "Yes"]
    with pytest.raises(ValueError, match='no token for "no"'):
        answer_tokens(make_processor(words=["yes", "rain"]).tokenizer, "no")


def test_answers_are_computed_in_float32_though_the_model_is_not():
    judge = LanguageModelPipeline(make_model().bfloat16(), make_processor(), device="cpu")
    pairs = [{"audio": make_clip(0.8, seed), "text": CAPTIONS[0], "sampling_rate": SAMPLING_RATE} for seed in range(8)]
    scores = torch.tensor([found["score"] for found in judge(pairs)])
    odds = scores.logit()
    assert (odds.bfloat16().float() - odds).abs().max() > 1e-4
    exact = LanguageModelPipeline(make_model(), make_processor(), device="cpu")(pairs)
    np.testing.assert_allclose(scores, [found["score"] for found in exact], atol=0.1)
    assert judge.settings["dtype"] == "bfloat16"


def test_the_output_layer_is_left_as_it_was(judge):
    head = judge.model.get_output_embeddings()
    judge({"audio": make_clip(0.8), "text": "rain", "sampling_rate": SAMPLING_RATE})
    assert not head._forward_hooks and not head._forward_pre_hooks


def test_the_door_is_that_of_all_models(folder, sounds, tmp_path, xacle):
    align = load_scorer(folder, "cpu", map_score=True)
    matrix = score_matrix(align, sounds, CAPTIONS)
    expected = LanguageModelPipeline(make_model(), make_processor(), device="cpu")
    by_pair = [[expected({"audio": sound, "text": text})["score"] for text in CAPTIONS] for sound in sounds]
    np.testing.assert_allclose(matrix, 10 * np.array(by_pair), atol=1e-4)
    told = xacle(
        "score",
        "--audio",
        sounds[0],
        "--text",
        CAPTIONS[1],
        "--model",
        folder,
        "--map-score",
        "--question",
        "describes",
    )
    assert float(told) == pytest.approx(matrix[0, 1], abs=0.01)
    first = xacle(
        "rank", sounds[0], *(word for text in CAPTIONS for word in ("--text", text)), "--model", folder
    ).split("\n")[0]
    assert first.split("\t")[2] == CAPTIONS[int(matrix[0].argmax())]
    texts = tmp_path / "captions.txt"
    texts.write_text("\n".join(CAPTIONS))
    assert xacle("matrix", *sounds, "--texts", texts, "--model", folder).count("\n") == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_tables_are_scored(workers, folder, sounds, tmp_path):
    rows = [f'{sound},"{CAPTIONS[number]}"' for number, sound in enumerate(sounds)]
    (tmp_path / "pairs.csv").write_text("\n".join(["audio,text", *rows, "gone.wav,rain", f"{sounds[0]},a <|AUDIO|>"]))
    align = load_scorer(folder, "cpu")
    report = score_table(align, PairSource(tmp_path / "pairs.csv"), tmp_path / "o.csv", TableOptions(workers=workers))
    assert report.counts == {"ok": 2, "padded": 1, "cut": 0, "windowed": 1, "error": 2}
    assert "spells <|AUDIO|>" in (tmp_path / "o.csv").read_text()
    settings = json.loads((tmp_path / "o.csv.json").read_text())["scorer"]
    assert settings["scale"] == "yes / (yes + no)"
    assert settings["questions"] == choose_questions(DEFAULT_QUESTIONS)


def test_another_question_is_another_scorer(folder):
    signatures = {
        scorer_signature(scorer_settings(load_scorer(folder, "cpu", questions=questions), TableOptions()))
        for questions in (None, ["hears"], ["hears", "describes"])
    }
    assert len(signatures) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda processor: setattr(processor, "chat_template", None), "no chat template"),
        (lambda processor: setattr(processor, "feature_extractor", None), "no feature extractor"),
        (lambda processor: setattr(processor.feature_extractor, "sampling_rate", None), "no sampling rate"),
    ],
)
def test_a_processor_that_cannot_ask_is_refused(spoil, message):
    processor = make_processor("audioflamingo3")
    spoil(processor)
    with pytest.raises(ValueError, match=message):
        LanguageModelPipeline(make_model("audioflamingo3"), processor, device="cpu")


def test_what_cannot_be_asked_is_told_in_one_sentence(folder, tmp_path, model_folder, xacle, sounds):
    make_model("audioflamingo3").save_pretrained(tmp_path / "mute")
    make_processor("audioflamingo3", words=["yes", "rain"]).save_pretrained(tmp_path / "mute")
    make_model("audioflamingo3").save_pretrained(tmp_path / "deaf")
    make_processor().tokenizer.save_pretrained(tmp_path / "deaf")
    make_model().save_pretrained(tmp_path / "other")
    make_processor("audioflamingo3").save_pretrained(tmp_path / "other")
    wrong = {
        f'{tmp_path / "mute"}: its tokenizer has no token for "no"': (tmp_path / "mute", None),
        f"{tmp_path / 'deaf'}: cannot be loaded: files are missing": (tmp_path / "deaf", None),
        f"{tmp_path / 'other'}: cannot score": (tmp_path / "other", None),
        "has no {caption} and is none of describes, hears": (folder, ["What is this?"]),
        "spells <|AUDIO|>": (folder, ["{caption} <|AUDIO|>"]),
        "--question is for audio language models": (model_folder, ["hears"]),
    }
    for message, (model, questions) in wrong.items():
        with pytest.raises(ValueError) as raised:
            load_scorer(model, "cpu", questions=questions)
        assert message in str(raised.value) and str(raised.value).count("\n") == 0
    pair = ("--audio", sounds[0], "--text", "rain", "--model", folder)
    assert "What is this?" in xacle("score", *pair, "--question", "What is this?", expect=1)


def test_weights_that_are_missing_are_told_in_a_sentence(tmp_path):
    model = make_model()
    kept = {name: weights for name, weights in model.state_dict().items() if "projector" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are missing.*projector"):
        load_scorer(tmp_path, "cpu")


def test_a_model_that_would_say_something_else_is_told_of(judge, monkeypatch, caplog):
    logging.enable_propagation()
    pair = {"audio": make_clip(0.8), "text": "rain", "sampling_rate": SAMPLING_RATE}
    warning_once = type(logging.get_logger()).warning_once
    warning_once.cache_clear()
    judge(pair)
    assert "would say something else" not in caplog.text
    monkeypatch.setattr("modeling_xacle.judges.language_model.SMALLEST_SHARE", 1.01)
    judge(pair)
    assert caplog.text.count("would say something else") == 1
    warning_once.cache_clear()
