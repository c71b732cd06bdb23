"""Stage 1's model: writes captions, and shares its weights with the scorer."""

import pytest
import torch
from conftest import PARITY, SAMPLING_RATE
from transformers import AutoModel, AutoModelForMultimodalLM

from modeling_xacle import XacleForConditionalGeneration, XacleModel
from modeling_xacle.training import caption_loss, keep_captions

CLIPS = [PARITY / "wav" / "a_16k_10s.wav", PARITY / "wav" / "c_44k_stereo_12s.wav"]
CAPTIONS = ["a dog", "rain falls on a roof"]


@pytest.fixture
def captioner(model_folder):
    return AutoModelForMultimodalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def prompt(processor):
    return processor.prepare_captioning(CLIPS)


def greedy_by_hand(model, prompt, steps):
    """Each next token from the whole sequence anew, without a cache."""
    ids = prompt["input_ids"]
    for _ in range(steps):
        logits = model(ids, input_features=prompt["input_features"]).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[:, prompt["input_ids"].shape[1] :]


@torch.no_grad()
def test_greedy_generation_equals_argmax_step_by_step(captioner, prompt):
    expected = greedy_by_hand(captioner, prompt, 6)
    for use_cache in (True, False):
        assert torch.equal(
            captioner.generate(**prompt, max_new_tokens=6, min_new_tokens=6, use_cache=use_cache), expected
        )
    assert not torch.equal(expected[0], expected[1])  # the clips differ, and so do their captions


@pytest.mark.parametrize(
    ("how", "rows"), [({"num_beams": 3}, 2), ({"do_sample": True, "num_return_sequences": 4}, 8), ({}, 2)]
)
def test_each_clip_is_encoded_once(how, rows, captioner, prompt, monkeypatch):
    encoded = []
    encode = captioner.model.get_audio_features
    monkeypatch.setattr(captioner.model, "get_audio_features", lambda x: encoded.append(len(x)) or encode(x))
    assert len(captioner.generate(**prompt, max_new_tokens=3, **how)) == rows
    assert encoded == [2]


def test_loss_counts_the_caption_and_its_end_only(captioner, processor):
    inputs = processor.prepare_captioning(CLIPS, CAPTIONS)
    output = captioner(**inputs)
    losses = []
    for row, caption in enumerate(CAPTIONS):
        targets = [*processor.tokenizer(caption)["input_ids"], processor.tokenizer.eos_token_id]
        log_probabilities = output.logits[row, 101 : 101 + len(targets)].log_softmax(-1)
        losses += [-log_probabilities[place, token] for place, token in enumerate(targets)]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_a_longer_neighbour_changes_nothing(captioner, processor):
    alone = captioner(**processor.prepare_captioning(CLIPS[:1], CAPTIONS[:1])).logits
    beside = captioner(**processor.prepare_captioning(CLIPS, CAPTIONS)).logits
    torch.testing.assert_close(beside[:1, : alone.shape[1]], alone, atol=1e-4, rtol=0)


def test_logits_of_the_captions_alone_give_the_same_loss(captioner, processor):
    inputs = processor.prepare_captioning(CLIPS, CAPTIONS)
    expected = captioner(**inputs)
    kept = keep_captions(inputs, prompt_length=102)
    labels = kept.pop("labels")
    count = (labels != -100).sum()
    output = captioner(**kept)
    assert count == (inputs["labels"] != -100).sum()
    assert output.logits.shape[:2] == labels.shape == (2, inputs["labels"].shape[1] - 102)
    torch.testing.assert_close(output.logits, expected.logits[:, 101:-1])
    torch.testing.assert_close(caption_loss(output, labels, count), expected.loss)
    del inputs["labels"]
    torch.testing.assert_close(captioner(**inputs, logits_to_keep=3).logits, expected.logits[:, -3:])


def test_padding_must_be_at_the_end(captioner, processor):
    inputs = processor.prepare_captioning(CLIPS, CAPTIONS)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="after padding"):
        captioner(**inputs)


def test_it_learns_to_caption(captioner, processor, prompt):
    """Projector and language model, trained on two clips, tell them apart in words."""
    inputs = processor.prepare_captioning(CLIPS, CAPTIONS)
    captioner.model.audio_tower.requires_grad_(False)
    parameters = [parameter for parameter in captioner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(60):
        loss = captioner(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    written = captioner.generate(**prompt, max_new_tokens=20)
    assert processor.batch_decode(written, skip_special_tokens=True) == CAPTIONS


def test_either_class_loads_the_folder_of_the_other(captioner, model, processor, prompt, tmp_path):
    captioner.save_pretrained(tmp_path)
    scorer, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(scorer, XacleModel)
    assert not any(info.values())
    for (name, before), after in zip(model.state_dict().items(), scorer.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    again, info = XacleForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(
        again.eval().generate(**prompt, max_new_tokens=4), captioner.generate(**prompt, max_new_tokens=4)
    )
    assert "modeling_xacle.XacleModel" in (tmp_path / "config.json").read_text()
    assert (tmp_path / "pipeline_xacle.py").exists()


def test_resized_embeddings_stay_tied(captioner):
    captioner.resize_token_embeddings(400)
    assert captioner.lm_head.weight is captioner.get_input_embeddings().weight
    assert captioner.lm_head.out_features == captioner.config.text_config.vocab_size == 400


def test_captions_and_clips_must_be_as_many(processor):
    with pytest.raises(ValueError, match="1 captions and 2 clips do not make pairs"):
        processor.prepare_captioning(CLIPS, CAPTIONS[0])
    with pytest.raises(ValueError, match="caption is empty"):
        processor.prepare_captioning(CLIPS, ["a dog", ""])


def test_a_long_caption_keeps_its_end_token(processor, tone):
    inputs = processor.prepare_captioning(tone, " ".join(["word"] * 400), sampling_rate=SAMPLING_RATE)
    assert inputs["labels"][0, -1] == processor.tokenizer.eos_token_id
    assert (inputs["labels"] != -100).sum() == 257
