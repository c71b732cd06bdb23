"""Captions behind the sound, and a score that reads how likely captioning finds them."""

import pytest
import torch
from conftest import PARITY
from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor, pipeline

from modeling_xacle.checkpoints.building import init_model

CAPTIONS = ["A dog barks", "Rain falls on a tin roof while somebody hums", "Wind"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model of the parity checkpoint's parts, built for caption likelihoods."""
    output = tmp_path_factory.mktemp("likelihood") / "model"
    init_model(PARITY / "beats.pt", str(PARITY / "llm"), output, caption_likelihood=True)
    return output


@pytest.fixture
def parts(folder):
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def test_the_sequence_is_that_of_captioning_and_the_score_token(parts, noise):
    _, processor = parts
    assert processor.audio_first
    sequence, _ = processor.tokenize_caption(CAPTIONS[0])
    captioning = processor.prepare_captioning([noise[0]], [CAPTIONS[0]], sampling_rate=16000)["input_ids"][0].tolist()
    assert sequence[:-1] == captioning[:-1]
    assert sequence[-1] == processor.audio_and_score_ids[-1]


def test_likelihoods_are_those_of_the_captioning_loss(parts, folder, noise):
    model, processor = parts
    captioner = AutoModelForMultimodalLM.from_pretrained(folder).eval()
    seen = []
    model.score_head.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -8:]))
    with torch.no_grad():
        model(**processor(text=CAPTIONS, audio=noise[:3], sampling_rate=16000))
        for clip, caption, features in zip(noise, CAPTIONS, seen[0], strict=False):
            inputs = processor.prepare_captioning([clip], [caption], sampling_rate=16000)
            outputs, labels = captioner(**inputs), inputs["labels"][0, 1:]
            every = outputs.logits[0, :-1].log_softmax(dim=-1)[labels != -100]
            found = every.gather(1, labels[labels != -100][:, None])[:, 0]
            least = [*found[found < found.mean()].sort().values.tolist(), *[found.mean().item()] * 4][:4]
            distance = (found - every.max(dim=1).values).mean().item()
            expected = [-outputs.loss.item(), *least, found[-1].item(), distance, len(found) / 16]
            assert features.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_pair_scores_the_same_in_any_batch_and_through_the_pipeline(parts, folder, noise):
    model, processor = parts
    with torch.no_grad():
        pairs = zip(CAPTIONS, noise[:3], strict=True)
        alone = [model(**processor(text=[text], audio=[clip], sampling_rate=16000)).scores for text, clip in pairs]
        together = model(**processor(text=CAPTIONS, audio=noise[:3], sampling_rate=16000)).scores
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-4)
    align = pipeline("audio-text-alignment", model=str(folder), device="cpu")
    results = align({"audio": noise[0], "text": CAPTIONS}, sampling_rate=16000)
    assert results[0]["score"] == pytest.approx(together[0].item(), abs=1e-4)


def test_the_gradient_reaches_the_language_model_through_the_likelihood(parts, noise):
    model, processor = parts
    with torch.no_grad():
        model.score_head.layers[0].weight[:, :-8] = 0  # the hidden state has no way but through the likelihood
    model(**processor(text=CAPTIONS, audio=noise[:3], sampling_rate=16000)).logits.sum().backward()
    weight = model.language_model.layers[0].self_attn.q_proj.weight
    assert weight.grad.abs().sum() > 0
    assert model.score_head.likelihood.weight.grad.abs().sum() > 0


def test_a_processor_that_orders_or_ends_captions_otherwise_is_refused(parts, folder):
    model, _ = parts
    before, other_end = AutoProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    before.audio_first = False
    other_end.tokenizer.eos_token = "[SCORE]"
    for processor, reason in ((before, "captions before the sound"), (other_end, "A caption ends with token")):
        with pytest.raises(ValueError, match=rf"{reason}.*the processor that was saved with this model"):
            pipeline("audio-text-alignment", model=model, processor=processor, device="cpu")


def test_captions_before_the_sound_are_refused(parts, noise):
    model, processor = parts
    processor.audio_first = False
    with pytest.raises(ValueError, match="captions behind the sound"):
        model(**processor(text=CAPTIONS, audio=noise[:3], sampling_rate=16000))
