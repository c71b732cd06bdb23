"""The published checkpoint, exactly: every container gives the published code's batch-size-1 scores and features."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import EXPECTED, PARITY
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

from modeling_xacle.checkpoints.conversion import convert_beats
from modeling_xacle.checkpoints.conversion_tmu import convert_tmu

CLIPS = ["b_16k_3s.wav", "c_44k_stereo_12s.wav"]


@pytest.fixture(scope="module")
def features():
    with np.load(PARITY / "features.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def assert_parity(folder):
    """The published code's scores of all pairs."""
    align = pipeline("audio-text-alignment", model=str(folder), device="cpu")
    pairs = [{"audio": PARITY / "wav" / pair["wav"], "text": pair["text"]} for pair in EXPECTED["pairs"]]
    scores = [result["score"] for result in align(pairs)]
    torch.testing.assert_close(scores, [pair["score_0_10"] for pair in EXPECTED["pairs"]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", ["", "model.pt", "model_container.pt", "model_lightning.ckpt"])
def test_scores_of_every_container(source, tmp_path):
    convert_tmu(PARITY / source, tmp_path / "model", llm=str(PARITY / "llm"), beats=PARITY / "beats.pt")
    assert_parity(tmp_path / "model")


def test_scores_with_a_fine_tuned_encoder(tmp_path, caplog):
    """The published commands take the fine-tuned BEATs file, whose class predictor is then in `model.pt` too."""
    state = torch.load(PARITY / "model.pt", weights_only=True)
    predictor = torch.load(PARITY / "beats_finetuned.pt", weights_only=True)["model"]
    for name in ("predictor.weight", "predictor.bias"):
        state[f"llm_wrapper.audio_encoder.model.{name}"] = predictor[name]
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "config.json").write_bytes((PARITY / "config.json").read_bytes())
    convert_tmu(tmp_path, tmp_path / "converted", llm=str(PARITY / "llm"), beats=PARITY / "beats_finetuned.pt")
    assert "its encoder was fine-tuned; the class predictor is left out" in caplog.text
    assert_parity(tmp_path / "converted")


def test_logits_are_the_raw_head_output(model, processor):
    pair = EXPECTED["pairs"][0]
    with torch.no_grad():
        output = model(**processor(text=pair["text"], audio=PARITY / "wav" / pair["wav"]))
    torch.testing.assert_close(output.logits.item(), pair["raw"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.scores, (output.logits + 1) * 5)


@pytest.mark.parametrize("clip", CLIPS)
@torch.no_grad()
def test_features_on_the_way(clip, model, processor, features):
    log_mel = processor.feature_extractor(PARITY / "wav" / clip)["input_features"]
    tokens = model.audio_tower(log_mel).last_hidden_state
    audio_tokens = model.projector(model.get_audio_features(log_mel))
    for name, value in (("fbank", log_mel), ("beats", tokens), ("audio_tokens", audio_tokens)):
        torch.testing.assert_close(
            value[0], features[f"{clip}|{name}"], atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("clip", CLIPS)
@torch.no_grad()
def test_fine_tuned_beats_classifies(clip, tmp_path, features):
    convert_beats(PARITY / "beats_finetuned.pt", tmp_path / "beats")
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "beats").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "beats")
    output = model(**extractor(PARITY / "wav" / clip))
    torch.testing.assert_close(output.probabilities[0], features[f"{clip}|probs"], atol=1e-5, rtol=0)
    assert model.config.id2label[3] == "/m/003"


def test_the_audio_classification_pipeline_gives_independent_probabilities(tmp_path, features):
    clip = CLIPS[0]
    convert_beats(PARITY / "beats_finetuned.pt", tmp_path / "beats")
    settings = json.loads((tmp_path / "beats" / "config.json").read_text())
    settings.pop("problem_type", None)  # as in a folder of an earlier version
    (tmp_path / "beats" / "config.json").write_text(json.dumps(settings))
    classify = pipeline("audio-classification", model=str(tmp_path / "beats"), device="cpu", top_k=None)
    waveform, _ = soundfile.read(PARITY / "wav" / clip, dtype="float32")
    found = {result["label"]: result["score"] for result in classify(waveform)}
    expected = features[f"{clip}|probs"]
    found = torch.tensor([found[classify.model.config.id2label[index]] for index in range(len(expected))])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_self_supervised_beats_encodes(tmp_path, features):
    convert_beats(PARITY / "beats.pt", tmp_path / "beats")
    model = AutoModel.from_pretrained(tmp_path / "beats").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "beats")
    tokens = model(**extractor(PARITY / "wav" / CLIPS[0])).last_hidden_state
    torch.testing.assert_close(tokens[0], features[f"{CLIPS[0]}|beats"], atol=1e-4, rtol=0)
