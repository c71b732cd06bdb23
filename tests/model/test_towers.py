"""Audio towers other than BEATs: each family is built, saved, loaded by strangers, trained, and hears clips alone."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PARITY
from stage_runs import command
from towers import TOWERS, save_tower
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoProcessor,
    ClapConfig,
    ClapModel,
    WavLMModel,
    WhisperFeatureExtractor,
    pipeline,
)

import run_stage
from modeling_xacle import BeatsModel, XacleTowerFeatureExtractor
from modeling_xacle.checkpoints.building import init_model
from modeling_xacle.checkpoints.fingerprints import without_bookkeeping
from modeling_xacle.checkpoints.towers import load_tower
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.modeling_towers import FAMILIES, pool_tokens, read_tower
from modeling_xacle.processing_xacle import check_agreement
from modeling_xacle.training.collators import SpecAugment
from modeling_xacle.training.feature_cache import AudioFeatureCache
from modeling_xacle.training.freezing import choose_trained

LLM = str(PARITY / "llm")
RATE = 16000
SECONDS = {"pe_audio_encoder": 1.0}  # shorter windows, where a tower takes any, to save time
TEXTS = ["a dog barks", "rain", "a bell rings twice in the rain"]


@pytest.fixture(scope="module")
def clips():
    """Sounds of 11 s, 0.7 s and 2 samples."""
    generator = np.random.default_rng(0)
    sizes = (11 * RATE, RATE * 7 // 10, 2)
    return [{"array": generator.normal(0, 0.1, size).astype(np.float32), "sampling_rate": RATE} for size in sizes]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained models with a tower of each family, by its type."""
    made = {}
    for kind in TOWERS:
        folder = tmp_path_factory.mktemp(kind)
        init_model(save_tower(kind, folder / "tower"), LLM, folder / "model", num_audio_tokens=8)
        if kind in SECONDS:
            processor = AutoProcessor.from_pretrained(folder / "model")
            front_end = processor.feature_extractor.front_end
            processor.feature_extractor = XacleTowerFeatureExtractor(front_end, SECONDS[kind])
            processor.save_pretrained(folder / "model")
        made[kind] = folder / "model"
    return made


@pytest.fixture(scope="module")
def scores(folders, clips):
    """By type, the scores of three pairs, each by itself."""
    found = {}
    for kind, folder in folders.items():
        align = pipeline("audio-text-alignment", model=str(folder), device="cpu")
        found[kind] = [align({"audio": clip, "text": text})["score"] for clip, text in zip(clips, TEXTS, strict=True)]
    return found


def test_every_family_has_a_model_here():
    assert set(TOWERS) == set(FAMILIES) - {"xacle_beats"}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_batch_changes_no_score(kind, folders, clips, scores):
    model, processor = AutoModel.from_pretrained(folders[kind]).eval(), AutoProcessor.from_pretrained(folders[kind])
    assert len(set(scores[kind])) == 3
    with torch.inference_mode():
        together = model(**processor(text=TEXTS, audio=clips)).scores
    np.testing.assert_allclose(together, scores[kind], atol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_the_tower_hears_what_its_own_library_gives_it(kind, folders, clips):
    _, _, extractor = TOWERS[kind]
    loaded = AutoFeatureExtractor.from_pretrained(folders[kind])
    heard = getattr(loaded, "front_end", loaded)  # our own front ends are not wrapped
    assert without_bookkeeping(heard.to_dict()) == without_bookkeeping(extractor.to_dict())
    rate = extractor.sampling_rate
    samples = round(loaded.max_seconds * rate)
    clip = np.random.default_rng(1).normal(0, 0.1, samples).astype(np.float32)
    expected = extractor(clip, sampling_rate=rate, return_tensors="pt")[extractor.model_input_names[0]]
    found = loaded({"array": clip, "sampling_rate": rate})["input_features"]
    if kind == "wav2vec2-bert":
        found = found[:, : expected.shape[1]]  # a frame of padding follows
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected)


@pytest.mark.parametrize("kind", TOWERS)
def test_silence_behind_a_sound_is_heard_only_where_the_tower_tells_no_padding(kind, folders, clips):
    model, processor = AutoModel.from_pretrained(folders[kind]).eval(), AutoProcessor.from_pretrained(folders[kind])
    inputs = processor.feature_extractor(clips[1])
    mask = inputs.get("input_features_mask")
    if mask is None:
        assert kind in ("xacle_byola", "xacle_m2d", "audio-spectrogram-transformer", "clap_audio_model")
        return
    kept = model.config.num_audio_tokens
    with torch.inference_mode():
        states = read_tower(model.audio_tower, inputs["input_features"], mask)
        sound = states[:, : int(np.ceil(int(mask.sum()) * states.shape[1] / mask.shape[1]))]
        torch.testing.assert_close(model.get_audio_features(**inputs), pool_tokens(sound, kept))


@pytest.mark.parametrize("kind", TOWERS)
def test_every_tower_hears_in_bfloat16(kind, folders, clips):
    processor = AutoProcessor.from_pretrained(folders[kind])
    inputs = processor.feature_extractor(clips[1])
    with torch.inference_mode():
        full, low = (
            AutoModel.from_pretrained(folders[kind], dtype=dtype).eval().get_audio_features(**inputs)
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert low.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full.flatten(), low.float().flatten(), dim=0) > 0.9


def test_every_weight_of_a_trained_tower_gets_a_gradient(folders, clips):
    for kind, folder in folders.items():
        model, processor = AutoModel.from_pretrained(folder).train(), AutoProcessor.from_pretrained(folder)
        model.audio_tower.config.layerdrop = 0.0  # else wav2vec 2.0 and its kin leave out layers at random
        stage = SimpleNamespace(train=["audio_tower"], lora_rank=0, stage=3, caption_weight=0)
        choose_trained(model, stage)
        model.get_audio_features(**processor.feature_extractor(clips[:2])).sum().backward()
        without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
        assert all("masked_spec_embed" in name for name in without), (kind, without)  # of wav2vec 2.0's own masks


STRANGER = """
import json, sys, warnings
import numpy as np
from transformers import pipeline
generator = np.random.default_rng(0)
sizes = (11 * 16000, 16000 * 7 // 10, 2)
clips = [{"array": generator.normal(0, 0.1, size).astype(np.float32), "sampling_rate": 16000} for size in sizes]
texts, found = json.loads(sys.argv[1]), {}
for kind, folder in json.loads(sys.argv[2]).items():
    align = pipeline("audio-text-alignment", model=folder, device="cpu", trust_remote_code=True)
    assert type(align).__module__.startswith("transformers_modules."), type(align)
    found[kind] = [align({"audio": clip, "text": text})["score"] for clip, text in zip(clips, texts)]
assert "modeling_xacle" not in sys.modules
print(json.dumps(found))
"""


def test_a_stranger_gets_the_same_scores(folders, scores, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    places = json.dumps({kind: str(folder) for kind, folder in folders.items()})
    command = [sys.executable, "-c", STRANGER, json.dumps(TEXTS), places]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for kind, values in scores.items():
        np.testing.assert_allclose(found[kind], values, atol=1e-5, err_msg=kind)


@pytest.mark.parametrize("kind", ["xacle_byola", "xacle_m2d", "clap_audio_model", "whisper", "wav2vec2-bert"])
def test_stored_features_and_masked_views_are_those_of_the_tower(kind, folders, tmp_path, pairs):
    model, processor = AutoModel.from_pretrained(folders[kind]).eval(), AutoProcessor.from_pretrained(folders[kind])
    rows = load_pairs(pairs, "validation").select(range(2))
    augment = SpecAugment(20, 40, processor.feature_extractor.axes, None)
    cache = AudioFeatureCache(tmp_path, model, processor, augment=augment, views=1)
    cache.fill([rows], model)
    for row in rows:
        inputs = processor.feature_extractor(row["audio"])
        with torch.inference_mode():
            torch.testing.assert_close(cache.load(row["audio"]), model.get_audio_features(**inputs)[0])
        assert not torch.equal(cache.load(row["audio"]), cache.load(row["audio"], seed=0))


@pytest.mark.parametrize(("kind", "shape"), [("whisper", (80, 300)), ("clap_audio_model", (1, 300, 64))])
def test_masks_lie_across_time_and_mel_bins(kind, shape, folders):
    axes = AutoFeatureExtractor.from_pretrained(folders[kind]).axes
    features = torch.arange(float(np.prod(shape))).view(shape)
    for sizes, masked_axis in (((9, 0), axes[1]), ((0, 9), axes[0])):
        changed = SpecAugment(*sizes, axes, None)(features, seed=3) != features
        across = changed.movedim(masked_axis, 0).flatten(1)
        assert 0 < across.any(dim=1).sum() <= 9 and (across.all(dim=1) == across.any(dim=1)).all()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("xacle_byola", ["--train", "audio_tower", "projector", "score_head"]),
        ("xacle_m2d", ["--cache_audio_features", True, "--augmented_views", 1]),
        ("audio-spectrogram-transformer", ["--lora_rank", 2, "--train", "projector"]),
        ("whisper", ["--cache_audio_features", True, "--augmented_views", 1]),
        ("clap_audio_model", ["--train", "audio_tower", "projector", "score_head"]),
        ("wavlm", ["--mask_mel_bins", 0, "--mask_frames", 0]),
    ],
)
def test_a_stage_trains_any_tower(kind, more, folders, pairs, tmp_path):
    cache = ["--cache_dir", tmp_path / "cache"] if "--cache_audio_features" in more else []
    run_stage.main(command(3, pairs, folders[kind], tmp_path / "out", "--max_steps", 2, *more, *cache))
    before, after = (AutoModel.from_pretrained(folder) for folder in (folders[kind], tmp_path / "out"))
    check_agreement(after.config, AutoProcessor.from_pretrained(tmp_path / "out"))
    weights = zip(before.audio_tower.parameters(), after.audio_tower.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in weights) != ("audio_tower" in more)
    assert not torch.equal(before.projector.up_proj.weight, after.projector.up_proj.weight)


def test_waveforms_cannot_be_masked(folders, pairs, tmp_path):
    with pytest.raises(ValueError, match="masks are for spectrograms, but this model's audio tower hears waveforms"):
        run_stage.main(command(3, pairs, folders["wavlm"], tmp_path))


def test_pooling_takes_the_sound_alone():
    states, mask = torch.randn(2, 30, 4), torch.zeros(2, 300, dtype=torch.bool)
    mask[0, :100], mask[1] = True, True
    pooled = pool_tokens(states, 7, mask)
    torch.testing.assert_close(pooled[:1], pool_tokens(states[:1, :10], 7))
    torch.testing.assert_close(pooled[1:], pool_tokens(states[1:], 7))


def test_a_tower_is_found_inside_a_larger_model(tmp_path, xacle):
    _, audio, extractor = TOWERS["clap_audio_model"]
    text = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = ClapModel(ClapConfig(audio_config=audio.to_dict(), text_config=text | {"intermediate_size": 16}))
    whole.save_pretrained(tmp_path / "clap")
    extractor.save_pretrained(tmp_path / "clap")
    xacle("init", "--tower", tmp_path / "clap", "--llm", LLM, "-o", tmp_path / "model")
    tower = AutoModel.from_pretrained(tmp_path / "model").audio_tower
    for name, tensor in whole.audio_model.state_dict().items():
        torch.testing.assert_close(tower.state_dict()[name], tensor, rtol=0, atol=0)
    assert "clap" in (tmp_path / "model" / "config.json").read_text()


def test_beats_is_a_tower_too(tmp_path):
    tower, extractor = load_tower(PARITY / "beats.pt")
    assert isinstance(tower, BeatsModel) and extractor.feature_size == tower.config.num_mel_bins


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "tower: "),
        (lambda folder: WhisperFeatureExtractor().save_pretrained(folder), "hears what Wav2Vec2FeatureExtractor makes"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "holds a bert model; an audio",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is empty"),
    ],
)
def test_what_cannot_be_a_tower_is_refused_in_a_sentence(spoil, message, tmp_path, xacle):
    WavLMModel(TOWERS["wavlm"][1]).save_pretrained(tmp_path / "tower")
    TOWERS["wavlm"][2].save_pretrained(tmp_path / "tower")
    spoil(tmp_path / "tower")
    told = xacle("init", "--tower", tmp_path / "tower", "--llm", LLM, "-o", tmp_path / "model", expect=1)
    told = told.splitlines()[-1]  # weights are saved with a bar
    assert told.startswith("error: ") and message in told and str(tmp_path / "tower") in told


def test_another_towers_processor_is_refused(folders):
    model, processor = (load.from_pretrained(folders["wavlm"]) for load in (AutoModel, AutoProcessor))
    other = AutoFeatureExtractor.from_pretrained(folders["whisper"])
    processor.feature_extractor = other
    with pytest.raises(ValueError, match=r"type wavlm hears what Wav2Vec2FeatureExtractor makes .* not what Whisper"):
        check_agreement(model.config, processor)


@pytest.mark.parametrize(("kind", "seconds"), [("whisper", 31), ("clap_audio_model", 11), ("wavlm", 0.01)])
def test_windows_that_a_tower_cannot_hear_are_refused(kind, seconds):
    with pytest.raises(ValueError, match=f"max_seconds={seconds}: .* takes windows"):
        XacleTowerFeatureExtractor(TOWERS[kind][2], max_seconds=seconds)
