"""Stage 1's model: writes captions, and shares its weights with the scorer."""

import pytest
import torch
from conftest import PARITY, SAMPLING_RATE
from transformers import AutoModel, AutoModelForMultimodalLM

from modeling_xacle import XacleForConditionalGeneration, XacleModel
from modeling_xacle.training.trainers import caption_loss, keep_captions

CLIPS = [PARITY / "wav" / "a_16k_10s.wav", PARITY / "wav" / "c_44k_stereo_12s.wav"]
CAPTIONS = ["a dog", "rain falls on a roof"]


@pytest.fixture
def captioner(model_folder):
    """Its language model's config asks for a cache, as those of pretrained ones do."""
    model = AutoModelForMultimodalLM.from_pretrained(model_folder).eval()
    assert model.config.text_config.use_cache
    return model


@pytest.fixture(scope="module")
def prompt(processor):
    return processor.prepare_captioning(CLIPS)


def greedy_by_hand(model, prompt, steps):
    """The prompts and each next token, from the whole sequence anew, without a cache."""
    ids = prompt["input_ids"]
    for _ in range(steps):
        logits = model(ids, input_features=prompt["input_features"]).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


STEPS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@torch.no_grad()
def test_greedy_generation_equals_argmax_step_by_step(captioner, prompt):
    expected = greedy_by_hand(captioner, prompt, 6)
    for how in ({}, {"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(captioner.generate(**prompt, **STEPS, **how), expected)
    assert not torch.equal(expected[0], expected[1])  # the clips differ, and so do their captions


@torch.no_grad()
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}])
def test_a_cache_changes_neither_beams_nor_samples(how, captioner, prompt):
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(captioner.generate(**prompt, **{**STEPS, **how}, use_cache=use_cache))
    assert torch.equal(*found)


@torch.no_grad()
def test_what_generate_may_be_asked_for(captioner, prompt, monkeypatch):
    expected = captioner.generate(**prompt, **STEPS)
    monkeypatch.setattr(captioner.generation_config, "max_new_tokens", 6)
    monkeypatch.setattr(captioner.generation_config, "min_new_tokens", 6)
    result = captioner.generate(**prompt, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(result.sequences, expected) and len(result.scores) == 6
    inputs = dict(prompt)
    assert torch.equal(captioner.generate(inputs.pop("input_ids"), captioner.generation_config, **inputs), expected)
    embedded = captioner.model.embed(
        prompt["input_ids"], captioner.model.get_audio_features(prompt["input_features"])
    )  # (B, S, H)
    length = prompt["input_ids"].shape[1]
    assert torch.equal(captioner.generate(inputs_embeds=embedded, **STEPS), expected[:, length:])
    with pytest.raises(ValueError, match="hold the sound already"):
        captioner(inputs_embeds=embedded, input_features=prompt["input_features"])


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 16}, {"assistant_early_exit": 1}])
def test_what_cannot_work_with_a_sound_is_refused(how, captioner, prompt):
    with pytest.raises(ValueError, match=f"`{next(iter(how))}` does not work with a sound"):
        captioner.generate(**prompt, **how)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_before_a_prompt_changes_nothing(use_cache, captioner, prompt):
    expected = captioner.generate(**prompt, **STEPS)
    pad = torch.zeros(2, 3, dtype=torch.long)
    pad[0] = 7  # the first prompt is padded, the second begins with a few words
    ids = torch.cat([pad, prompt["input_ids"]], dim=1)
    mask = torch.cat([torch.tensor([[0] * 3, [1] * 3]), prompt["attention_mask"]], dim=1)
    padded = captioner.generate(
        ids, attention_mask=mask, input_features=prompt["input_features"], use_cache=use_cache, **STEPS
    )
    assert torch.equal(padded[0, 3:], expected[0])
    alone = captioner.generate(ids[1:], input_features=prompt["input_features"][1:], **STEPS)
    assert torch.equal(padded[1], alone[0])


@torch.no_grad()
def test_padding_before_a_prompt_changes_no_later_step(captioner, prompt):
    """Also where a cache is handed on by hand, with a mask and no positions."""
    ids = torch.cat([torch.full((2, 3), 7), prompt["input_ids"]], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt["attention_mask"]], dim=1)
    features = {"input_features": prompt["input_features"]}
    first = captioner(ids, attention_mask=mask, use_cache=True, **features)
    token = first.logits[:, -1:].argmax(dim=-1)
    expected = captioner(torch.cat([prompt["input_ids"], token], dim=1), **features).logits[:, -1]
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    found = captioner(token, attention_mask=mask, cache=first.cache).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_forgotten_sound_is_told(captioner, prompt):
    for call in (captioner, captioner.generate):
        with pytest.raises(ValueError, match=r"has \[AUDIO\] tokens but no sound"):
            call(prompt["input_ids"])


@torch.no_grad()
def test_the_older_name_of_the_cache_is_not_ignored(captioner, prompt):
    """An argument that fell into `**kwargs` would be lost without a word."""
    first = captioner(**prompt, use_cache=True)
    token = first.logits[:, -1:].argmax(dim=-1)
    whole = torch.cat([prompt["input_ids"], token], dim=1)
    expected = captioner(whole, input_features=prompt["input_features"]).logits[:, -1]
    with pytest.warns(FutureWarning, match="past_key_values"):
        found = captioner(token, past_key_values=first.cache).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_generation_gives_no_warning(captioner, prompt, recwarn, caplog):
    captioner.generate(**prompt, **STEPS)
    assert not [str(warning.message) for warning in recwarn if "deprecat" in str(warning.message).lower()]
    assert not caplog.records


@pytest.mark.parametrize(
    ("how", "rows"), [({"num_beams": 3}, 2), ({"do_sample": True, "num_return_sequences": 4}, 8), ({}, 2)]
)
def test_each_clip_is_encoded_once(how, rows, captioner, prompt, monkeypatch):
    encoded = []
    encode = captioner.model.get_audio_features
    monkeypatch.setattr(
        captioner.model,
        "get_audio_features",
        lambda input_features, *mask: encoded.append(len(input_features)) or encode(input_features),
    )
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


def test_a_mask_must_fit_the_sequences(captioner, processor):
    inputs = processor.prepare_captioning(CLIPS, CAPTIONS)
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    with pytest.raises(ValueError, match="attention_mask has shape"):
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
    assert again.model.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(
        again.eval().generate(**prompt, max_new_tokens=4), captioner.generate(**prompt, max_new_tokens=4)
    )
    assert "modeling_xacle.XacleModel" in (tmp_path / "config.json").read_text()
    assert (tmp_path / "pipeline_xacle.py").exists()


def test_resized_embeddings_stay_tied(captioner):
    captioner.resize_token_embeddings(400)
    assert captioner.model.lm_head.weight is captioner.get_input_embeddings().weight
    assert captioner.model.lm_head.out_features == captioner.config.text_config.vocab_size == 400


def test_captions_and_clips_must_be_as_many(processor):
    with pytest.raises(ValueError, match="1 captions and 2 clips do not make pairs"):
        processor.prepare_captioning(CLIPS, CAPTIONS[0])
    with pytest.raises(ValueError, match="caption is empty"):
        processor.prepare_captioning(CLIPS, ["a dog", ""])


def test_a_long_caption_keeps_its_end_token(processor, tone):
    inputs = processor.prepare_captioning(tone, " ".join(["word"] * 400), sampling_rate=SAMPLING_RATE)
    assert inputs["labels"][0, -1] == processor.tokenizer.eos_token_id
    assert (inputs["labels"] != -100).sum() == 257
