"""PE-AV behind CLAP's doors: the library's own numbers, whole sounds, no influence of neighbours."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from teachers import (
    CAPTIONS,
    SAMPLING_RATE,
    make_clip,
    make_model,
    make_pe_model,
    make_pe_processor,
    make_processor,
    save_pe_teacher,
)
from transformers import PeAudioConfig, PeAudioVideoConfig

from modeling_xacle.judges.contrastive import ContrastiveTeacher
from modeling_xacle.scoring import load_scorer, score_matrix


@pytest.fixture(scope="module")
def teacher():
    return ContrastiveTeacher(make_pe_model(), make_pe_processor())


@pytest.fixture(scope="module")
def clips():
    """Lengths that share a pass of the encoder, and lengths that do not."""
    return [make_clip(seconds, seed) for seed, seconds in enumerate([0.3, 1.7, 0.3, 0.05, 1.7, 0.301])]


@pytest.fixture
def short_windows(monkeypatch):
    """Windows of a second."""
    monkeypatch.setattr("modeling_xacle.judges.families.PE_WINDOW_SECONDS", 1)


def test_a_score_is_the_cosine_of_the_librarys_embeddings(teacher, clips):
    tokens = teacher.tokenizer(CAPTIONS, padding=True, return_tensors="pt", return_token_type_ids=False)
    embeddings, texts = teacher.embed_audio(clips, SAMPLING_RATE), teacher.embed_text(CAPTIONS)
    for clip, embedding in zip(clips, embeddings, strict=True):
        sound = teacher.feature_extractor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        with torch.no_grad():
            output = teacher.model(**sound, **tokens)
        expected = torch.cosine_similarity(output.audio_embeds, output.text_audio_embeds)
        torch.testing.assert_close(texts @ embedding, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_clip_has_one_embedding_in_any_company(teacher, clips, batch_size, short_windows):
    expected = teacher.embed_audio(clips, SAMPLING_RATE)
    torch.testing.assert_close(teacher.embed_audio(clips, SAMPLING_RATE, batch_size), expected, atol=1e-5, rtol=0)
    backwards = teacher.embed_audio(clips[::-1], SAMPLING_RATE, batch_size).flip(0)
    torch.testing.assert_close(backwards, expected, atol=1e-5, rtol=0)
    assert torch.pdist(expected).min() > 1e-2


def test_a_long_clip_is_the_mean_of_its_windows_weighted_by_length(teacher, short_windows):
    clip = make_clip(2.5)
    windows = teacher.embed_audio([clip[:16000], clip[16000:32000], clip[32000:]], SAMPLING_RATE)
    mean = torch.tensor([0.4, 0.4, 0.2]) @ windows
    torch.testing.assert_close(teacher.embed_audio([clip], SAMPLING_RATE)[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_half_a_minute_is_heard_at_once(teacher):
    extractor = teacher.feature_extractor
    assert teacher.family.window_samples(extractor) == 30 * SAMPLING_RATE
    features, weights = teacher.family.clip_features(extractor, np.zeros(31 * SAMPLING_RATE), SAMPLING_RATE)
    assert [part.shape for part in features] == [(1, 1, 480000), (1, 1, 16000)]
    torch.testing.assert_close(weights, torch.tensor([30 / 31, 1 / 31]))


def test_the_door_is_claps(tmp_path, teacher, short_windows, xacle):
    folder = save_pe_teacher(tmp_path / "pe")
    paths = []
    for number, seconds in enumerate((0.32, 1.005, 2.6, 0.301)):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], make_clip(seconds, number), SAMPLING_RATE)
    align = load_scorer(folder, "cpu")
    expected = teacher.embed_audio(paths) @ teacher.embed_text(CAPTIONS).T
    np.testing.assert_allclose(score_matrix(align, paths, CAPTIONS, batch_size=3), expected, atol=1e-5)
    notes = [align({"audio": path, "text": "rain"}).get("notes") for path in paths]
    windowed = ["windowed: 2.6 s in windows of 1 s"]
    assert notes == [None, ["cut: 1.005 s to 1 s"], windowed, ["padded: 0.301 s to 0.32 s"]]
    told = float(xacle("score", "--audio", paths[2], "--text", "rain falls", "--model", folder, "--map-score"))
    assert told == pytest.approx((expected[2, 1].item() + 1) * 5, abs=0.01)


def test_the_part_for_sound_is_taken_of_a_checkpoint_that_knows_pictures(tmp_path, teacher):
    """As facebook/pe-av-large is stored: towers below `audio_model`, one text tower for all."""
    model = make_pe_model()
    parts = {"text_config": model.config.text_config.to_dict()}
    parts["audio_video_config"] = {"audio_config": model.config.audio_config.to_dict()}
    config = PeAudioVideoConfig(**parts)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    weights = {
        name if name.startswith("text_model") else f"audio_model.{name}": w for name, w in model.state_dict().items()
    }
    weights["video_model.video_head.proj.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    make_pe_processor().save_pretrained(tmp_path)
    loaded = ContrastiveTeacher.from_pretrained(tmp_path)
    assert isinstance(loaded.model.config, PeAudioConfig)
    torch.testing.assert_close(loaded.embed_text(CAPTIONS), teacher.embed_text(CAPTIONS))


def test_a_processor_of_another_model_is_refused(tmp_path):
    other = make_pe_processor()
    other.feature_extractor.hop_length = 640
    with pytest.raises(ValueError, match="frames of 320 samples, but its processor pads to frames of 640"):
        ContrastiveTeacher(make_pe_model(), other)
    with pytest.raises(ValueError, match="frames of 320 samples"):
        ContrastiveTeacher(make_pe_model(), make_processor())
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no processor of the model there"):
        load_scorer(tmp_path, "cpu")


def test_weights_that_are_missing_are_told_in_a_sentence(tmp_path):
    model = make_pe_model()
    kept = {name: weights for name, weights in model.state_dict().items() if "audio_head" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    make_pe_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are missing.*audio_head"):
        load_scorer(tmp_path, "cpu")
