"""CLAP teachers: the same embedding for the same clip or caption, whatever else happens; shards; AUC."""

import hashlib
import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import DatasetDict
from teachers import CAPTIONS, SAMPLING_RATE, make_clip, make_model, make_processor, make_teacher, save_teacher

from modeling_xacle.data.pairs import make_dataset
from modeling_xacle.judges.contrastive import ContrastiveTeacher, score_pairs, separation_auc
from modeling_xacle.judges.embeddings import EmbeddingShards, PairIndex, embed_captions, embed_clips


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture(scope="module")
def clips():
    return [make_clip(seconds, seed) for seed, seconds in enumerate([0.3, 2.6, 1.0, 4.0, 1.5, 0.05])]


@pytest.mark.parametrize("fusion", [False, True])
def test_clips_of_any_length_have_one_embedding_at_any_batch_size_and_in_any_company(clips, fusion):
    teacher = make_teacher(fusion)
    np.random.seed(0)
    expected = teacher.embed_audio(clips, SAMPLING_RATE, batch_size=16)
    np.random.seed(1)  # the library's extractor draws its crops and its "longer" clip from here
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(
            teacher.embed_audio(clips, SAMPLING_RATE, batch_size=batch_size), expected, atol=1e-5, rtol=0
        )
    alone = torch.cat([teacher.embed_audio([clip], SAMPLING_RATE) for clip in reversed(clips)]).flip(0)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    assert torch.pdist(expected).min() > 1e-3
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(len(clips)))


def test_no_window_counts_as_longer_for_a_model_with_fusion(clips):
    teacher = make_teacher(fusion=True)
    [features], _ = teacher.clip_features(clips[2], SAMPLING_RATE)
    with torch.no_grad():
        fused, plain = (
            teacher.model.get_audio_features(features, is_longer=torch.tensor([[longer]])).pooler_output
            for longer in (True, False)
        )
    torch.testing.assert_close(teacher.embed_audio([clips[2]], SAMPLING_RATE), plain)
    assert (fused - plain).abs().max() > 1e-3


def test_a_long_clip_is_the_mean_of_its_windows_weighted_by_length(teacher):
    clip = make_clip(2.5)
    windows = teacher.embed_audio([clip[:16000], clip[16000:32000], clip[32000:]], SAMPLING_RATE)
    mean = torch.tensor([0.4, 0.4, 0.2]) @ windows
    torch.testing.assert_close(teacher.embed_audio([clip], SAMPLING_RATE)[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_milliseconds_beyond_a_window_cost_no_pass_but_more_does(teacher):
    counts = [
        len(teacher.clip_features(make_clip(seconds), SAMPLING_RATE)[1]) for seconds in (0.004, 1, 1.005, 1.02, 2.005)
    ]
    assert counts == [1, 1, 1, 2, 2]


def test_features_of_a_clip_that_fits_are_the_librarys(teacher):
    clip = make_clip(0.7)
    [features], weights = teacher.clip_features(clip, SAMPLING_RATE)
    expected = teacher.feature_extractor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features, expected)
    assert weights.tolist() == [1.0]


def test_other_rates_and_channels_are_brought_to_the_teachers(teacher, tmp_path):
    time = np.arange(44100) / 44100
    tone = 0.3 * np.sin(2 * np.pi * 500 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], axis=1), 44100)
    same = 0.3 * np.sin(2 * np.pi * 500 * np.arange(SAMPLING_RATE) / SAMPLING_RATE).astype(np.float32)
    at_file, at_array = teacher.embed_audio([tmp_path / "tone.wav"]), teacher.embed_audio([same], SAMPLING_RATE)
    assert (at_file @ at_array.T).item() > 0.99


def test_captions_have_one_embedding_at_any_batch_size(teacher):
    expected = teacher.embed_text(CAPTIONS)
    torch.testing.assert_close(teacher.embed_text(CAPTIONS, batch_size=1), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(teacher.embed_text(CAPTIONS[::-1], batch_size=3).flip(0), expected, atol=1e-6, rtol=0)
    assert torch.pdist(expected).min() > 1e-3


def test_a_caption_beyond_the_encoders_length_is_cut_with_a_warning(teacher, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    long = " ".join(["rain"] * 40)
    assert torch.isfinite(teacher.embed_text([long, "rain falls"])).all()
    assert "cut: 42 tokens to 22" in caplog.text
    assert "rain falls" not in caplog.text


def test_nothing_gives_nothing(teacher):
    assert teacher.embed_audio([]).shape == teacher.embed_text([]).shape == (0, teacher.embedding_size)


def test_scores_are_the_cosines_of_the_librarys_own_forward(teacher, clips):
    short = [clips[0], clips[2]]
    features = teacher.feature_extractor(short, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    tokens = teacher.tokenizer(CAPTIONS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        output = teacher.model(input_features=features, **tokens)
    cosines = output.logits_per_audio / teacher.model.logit_scale_a.exp()
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(4))
    audio, text = teacher.embed_audio(short, SAMPLING_RATE), teacher.embed_text(CAPTIONS)
    torch.testing.assert_close(score_pairs(audio, text, pairs), cosines.flatten(), atol=1e-5, rtol=0)


def test_pairs_are_scored_in_chunks_as_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (5, 7))
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(7))
    monkeypatch.setattr("modeling_xacle.judges.contrastive.PAIRS_PER_CHUNK", 4)
    torch.testing.assert_close(score_pairs(audio, text, pairs), (audio @ text.T).flatten())
    same = score_pairs(audio, audio, torch.arange(5).repeat(2, 1).T)
    assert same.max() <= 1 and same.min() > 1 - 1e-6


def test_auc_is_the_share_of_ordered_pairs_with_ties_counted_half():
    generator = np.random.default_rng(0)
    positives, negatives = generator.integers(0, 12, 60) / 10, generator.integers(-3, 9, 85) / 10
    brute_force = np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives])
    assert separation_auc(positives, negatives) == pytest.approx(brute_force, abs=1e-12)
    assert separation_auc(np.array([2.0, 3.0]), np.array([1.0])) == 1
    assert separation_auc(np.ones(3), np.ones(4)) == 0.5
    assert np.isnan(separation_auc(np.ones(3), np.empty(0)))


def test_a_folder_gives_the_teacher_that_was_saved(teacher, tmp_path):
    loaded = ContrastiveTeacher.from_pretrained(save_teacher(tmp_path))
    assert loaded.fingerprint == teacher.fingerprint
    torch.testing.assert_close(loaded.embed_text(CAPTIONS), teacher.embed_text(CAPTIONS))


def test_weights_and_processor_may_lie_in_different_folders(teacher, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    make_processor().save_pretrained(tmp_path / "processor")
    with pytest.raises(ValueError, match="no processor of the model"):
        ContrastiveTeacher.from_pretrained(tmp_path / "model")
    loaded = ContrastiveTeacher.from_pretrained(tmp_path / "model", tmp_path / "processor")
    assert loaded.fingerprint == teacher.fingerprint


def test_the_fingerprint_tells_weights_and_front_ends_apart(teacher, monkeypatch):
    other_front_end = make_processor()
    other_front_end.feature_extractor.hop_length = 320
    fingerprints = {
        teacher.fingerprint,
        make_teacher(seed=1).fingerprint,
        ContrastiveTeacher(make_model(), other_front_end).fingerprint,
    }
    monkeypatch.setattr("modeling_xacle.checkpoints.fingerprints.audio_engine", lambda: "another")
    fingerprints.add(make_teacher().fingerprint)
    assert len(fingerprints) == 4


def test_what_is_no_complete_clap_model_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="type xacle, not clap, pe_audio"):
        ContrastiveTeacher.from_pretrained(model_folder)
    model = make_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "logit_scale_a"}
    model.save_pretrained(tmp_path, state_dict=state)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are missing.*logit_scale_a"):
        ContrastiveTeacher.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        ContrastiveTeacher.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("fusion", [False, True])
def test_a_processor_for_the_other_kind_of_model_is_refused(fusion):
    with pytest.raises(ValueError, match="laion/clap-htsat-" + ("fused" if fusion else "unfused")):
        ContrastiveTeacher(make_model(fusion), make_processor(not fusion))


def as_flac(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format="FLAC")
    return file.getvalue()


@pytest.fixture
def splits(tmp_path):
    """Five rows of three clips, one of them embedded, and four captions."""
    soundfile.write(tmp_path / "a.wav", make_clip(0.5, 1), SAMPLING_RATE)
    soundfile.write(tmp_path / "b.wav", make_clip(2.5, 2), SAMPLING_RATE)
    content = as_flac(make_clip(0.4, 3))
    audios = {"a": str(tmp_path / "a.wav"), "b": str(tmp_path / "b.wav"), "c": {"bytes": content, "path": "c.flac"}}
    table = {"train": ["a0", "a1", "c1"], "test": ["b2", "a3"]}
    return DatasetDict(
        {
            split: make_dataset(
                {"id": f"{name}{n}", "audio": audios[name], "text": CAPTIONS[int(n)]} for name, n in names
            )
            for split, names in table.items()
        }
    )


def test_the_index_finds_each_clip_and_caption_once(splits):
    index = PairIndex(splits)
    assert index.captions == CAPTIONS
    assert {split: rows.tolist() for split, rows in index.rows.items()} == {
        "train": [[0, 0], [0, 1], [1, 1]],
        "test": [[2, 2], [0, 3]],
    }
    assert index.audio(1)["bytes"] is not None and index.audio(2)["path"].endswith("b.wav")


def test_a_changed_clip_has_another_key(splits, tmp_path):
    before = PairIndex(splits).clip_keys
    soundfile.write(tmp_path / "b.wav", make_clip(2.4, 2), SAMPLING_RATE)
    after = PairIndex(splits).clip_keys
    assert [x == y for x, y in zip(before, after, strict=True)] == [True, True, False]


def test_shards_hold_what_the_teacher_gives_and_say_what_is_broken(teacher, splits, tmp_path):
    index = PairIndex(splits)
    (tmp_path / "a.wav").write_bytes(b"no sound")
    clips = EmbeddingShards(tmp_path / "shards", "clips", index.clip_keys, shard_size=2)
    captions = EmbeddingShards(tmp_path / "shards", "captions", index.captions, shard_size=3)
    assert len(clips) == 3 and len(captions) == 4
    embed_clips(teacher, index.audio, clips.missing(), batch_size=2)
    embed_captions(teacher, index.captions, captions.missing())
    assert clips.missing() == captions.missing() == []
    audio, broken = clips.read()
    assert list(broken) == [0] and "a.wav" in broken[0]
    assert not audio[0].any()
    torch.testing.assert_close(audio[1:], teacher.embed_audio([index.audio(1), index.audio(2)]), atol=1e-6, rtol=0)
    torch.testing.assert_close(captions.read()[0], teacher.embed_text(CAPTIONS), atol=1e-6, rtol=0)
    assert not list(tmp_path.rglob("*.partial"))


def test_worker_processes_change_nothing(teacher, splits, tmp_path):
    index = PairIndex(splits)
    tables = []
    for num_workers in (0, 2):
        shards = EmbeddingShards(tmp_path / str(num_workers), "clips", index.clip_keys)
        embed_clips(teacher, index.audio, shards.missing(), num_workers=num_workers)
        tables.append(shards.read()[0])
    torch.testing.assert_close(tables[0], tables[1], atol=1e-6, rtol=0)


def test_processes_share_the_shards_without_overlap(tmp_path):
    shards = EmbeddingShards(tmp_path, "clips", [str(n) for n in range(23)], shard_size=4)
    shares = [shards.missing(rank, 3) for rank in range(3)]
    items = sorted(item for share in shares for _, part in share for item in part)
    assert items == list(range(23))
    path, part = shares[1][0]
    EmbeddingShards.write(path, torch.ones(len(part), 2))
    digest = hashlib.sha256(path.read_bytes()).digest()
    assert [share[0] for share in shards.missing(1, 3)] == [share[0] for share in shares[1][1:]]
    EmbeddingShards.write(path, torch.ones(len(part), 2))
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_only_shards_of_changed_items_are_made_again(tmp_path):
    keys = [str(n) for n in range(10)]
    for path, items in EmbeddingShards(tmp_path, "clips", keys, shard_size=4).missing():
        EmbeddingShards.write(path, torch.zeros(len(items), 2))
    keys[5] = "changed"
    assert [items for _, items in EmbeddingShards(tmp_path, "clips", keys, shard_size=4).missing()] == [range(4, 8)]
