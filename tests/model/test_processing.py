"""The sequence: its order, its padding, its captions."""

import numpy as np
import pytest
import torch
from conftest import PARITY, SAMPLING_RATE
from transformers import AutoProcessor, AutoTokenizer

from modeling_xacle import XacleFeatureExtractor, XacleProcessor
from modeling_xacle.processing_xacle import SPECIAL_TOKENS


def test_order_of_the_sequence(processor, tone):
    inputs = processor(text="a dog", audio=tone, sampling_rate=SAMPLING_RATE)
    caption = processor.tokenizer("a dog")["input_ids"]
    start, end, score, audio = processor.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    assert inputs["input_ids"][0].tolist() == [*caption, start, *[audio] * 100, end, score]
    assert inputs["input_features"].shape == (1, 998, 128)
    assert set(inputs) == set(processor.model_input_names)


def test_padding_is_at_the_end_only(processor):
    inputs = processor(text=["beep", "A dog barking in the park"])
    assert inputs["attention_mask"].diff(dim=1).max() == 0
    score_id = processor.tokenizer.convert_tokens_to_ids("[SCORE]")
    last = inputs["attention_mask"].sum(dim=1) - 1
    assert inputs["input_ids"][torch.arange(2), last].tolist() == [score_id, score_id]


@pytest.mark.parametrize("token", ["[SCORE]", "[AUDIO]", "[AUDIO_START]", "<|im_end|>", "<|endoftext|>"])
def test_a_caption_that_spells_a_special_token_stays_text(token, processor):
    ids, _ = processor.tokenize_caption(f"a sign that says {token} beeps")
    caption = ids[:-103]
    assert processor.tokenizer.decode(caption) == f"a sign that says {token} beeps"
    assert processor.tokenizer.convert_tokens_to_ids(token) not in caption


def test_over_long_caption_is_cut_and_told(processor, tone):
    caption = " ".join(["word"] * 400)
    inputs = processor(text=caption, audio=tone, sampling_rate=SAMPLING_RATE, return_notes=True)
    length = len(processor.tokenizer(caption)["input_ids"])
    assert inputs["notes"] == [["padded: 2 s to 10 s", f"caption cut: {length} tokens to 256"]]
    assert inputs["input_ids"].shape[1] == 256 + 103


def test_the_beginning_of_a_long_caption_is_kept(processor):
    words = [f"word{number}" for number in range(200)]
    ids, _ = processor.tokenize_caption(" ".join(words))
    assert ids[:256] == processor.tokenizer(" ".join(words))["input_ids"][:256]


def test_a_caption_of_just_the_longest_length_has_no_note(processor):
    caption = " beep" * 300
    full = processor.tokenizer.decode(processor.tokenizer(caption)["input_ids"][:256])
    assert len(processor.tokenizer(full)["input_ids"]) == 256
    assert processor.tokenize_caption(full)[1] == []


def test_cuts_are_logged_where_notes_are_not_asked_for(processor, caplog):
    processor(text="a dog", audio=np.zeros(11 * SAMPLING_RATE, dtype=np.float32), sampling_rate=SAMPLING_RATE)
    assert "cut: 11 s to 10 s" in caplog.text


def test_numpy_result(processor):
    assert isinstance(processor(text="a dog", return_tensors="np")["input_ids"], np.ndarray)


def test_saved_processor_is_the_same(processor, tmp_path, tone):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, XacleProcessor)
    before, after = (p(text="a [SCORE] dog", audio=tone, sampling_rate=SAMPLING_RATE) for p in (processor, again))
    for name in processor.model_input_names:
        assert torch.equal(before[name], after[name])


def test_own_lengths_survive_saving(processor, tmp_path):
    XacleProcessor(
        processor.feature_extractor, processor.tokenizer, num_audio_tokens=7, max_text_tokens=2
    ).save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again(text="a long caption")["input_ids"].shape == (1, 2 + 7 + 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Nothing to process"),
        ({"text": ""}, ValueError, "caption is empty"),
        ({"text": " \n"}, ValueError, "caption is empty"),
        ({"text": "\u200b"}, ValueError, "caption is empty"),
        ({"text": 3}, TypeError, "must be a string, not int: 3"),
        ({"text": None, "audio": []}, ValueError, "the list is empty"),
        ({"text": ["a", None]}, TypeError, "There is no caption"),
        ({"text": "a \ud800 b"}, ValueError, "lone surrogate"),
        ({"text": ["a", "b"], "audio": [np.zeros(9)]}, ValueError, "2 captions and 1 clips do not make pairs"),
    ],
)
def test_what_is_no_pair(arguments, error, message, processor):
    with pytest.raises(error, match=message):
        processor(**arguments, sampling_rate=SAMPLING_RATE)


def test_a_tokenizer_without_the_tokens():
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llm")
    with pytest.raises(ValueError, match=r"lacks \[AUDIO_START\].*xacle init"):
        XacleProcessor(XacleFeatureExtractor(), tokenizer)


def test_a_folder_without_a_processor(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no complete XacleProcessor.*processor\.save_pretrained"):
        AutoProcessor.from_pretrained(tmp_path)
