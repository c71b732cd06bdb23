"""The store of audio features: what it holds, when it is found again, and what it does not encode twice."""

import json
import os
import socket
import time

import numpy as np
import pytest
import soundfile
import torch
from accelerate import PartialState
from conftest import SAMPLING_RATE, run_processes
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor

from modeling_xacle.checkpoints import fingerprints
from modeling_xacle.data.pairs import make_dataset
from modeling_xacle.training.collators import AUGMENTATION_SEED, PairCollator, SpecAugment, TrainingRows
from modeling_xacle.training.feature_cache import AudioFeatureCache

AUGMENT = SpecAugment(40, 300)


@pytest.fixture
def sounds(tmp_path):
    """Four files: the last has the sound of the first under another name."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.wav" for name in "abcd"]
    for path in paths[:3]:
        soundfile.write(path, 0.1 * generator.normal(size=SAMPLING_RATE), SAMPLING_RATE)
    paths[3].write_bytes(paths[0].read_bytes())
    return paths


@pytest.fixture
def dataset(sounds):
    return make_dataset({"id": path.stem, "audio": str(path), "text": "a sound"} for path in sounds)


@pytest.fixture
def encoded(model, monkeypatch):
    """Numbers of clips in the calls of the encoder."""
    sizes = []
    encode = model.get_audio_features
    monkeypatch.setattr(
        model,
        "get_audio_features",
        lambda input_features, *mask: sizes.append(len(input_features)) or encode(input_features),
    )
    return sizes


@torch.no_grad()
def features_of(model, processor, audio, augment=None, seed=0):
    features = processor.feature_extractor(audio)["input_features"]
    if augment is not None:
        features = augment(features[0], seed)[None]
    return model.get_audio_features(features)[0]


def filled(folder, model, processor, datasets, **settings):
    cache = AudioFeatureCache(folder, model, processor, **settings)
    cache.fill(datasets, model, batch_size=2)
    return cache


def files(folder):
    return sorted(folder.rglob("*.npy"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_stored_features_are_those_of_the_encoder(dtype, tolerance, tmp_path, model, processor, dataset, sounds):
    cache = filled(tmp_path / "cache", model, processor, [dataset], dtype=dtype)
    for row, sound in zip(dataset, sounds, strict=True):
        found = cache.load(row["audio"])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, features_of(model, processor, sound), atol=tolerance, rtol=0)
    assert {np.load(file).dtype.name for file in files(tmp_path)} == {dtype}
    assert not torch.allclose(cache.load(dataset[0]["audio"]), cache.load(dataset[1]["audio"]), atol=1e-2)


def test_one_sound_is_encoded_once(tmp_path, model, processor, dataset, sounds, encoded):
    embedded = make_dataset(
        {"id": f"embedded {path.stem}", "audio": {"bytes": path.read_bytes(), "path": path.name}, "text": "a sound"}
        for path in sounds
    )
    cache = filled(tmp_path / "cache", model, processor, [dataset, embedded, dataset])
    assert encoded == [2, 1]
    assert len(files(tmp_path)) == 3
    a, d, embedded_a = dataset[0]["audio"], dataset[3]["audio"], embedded[0]["audio"]
    assert torch.equal(cache.load(a), cache.load(d)) and torch.equal(cache.load(a), cache.load(embedded_a))
    cache.fill([dataset, embedded], model)
    filled(tmp_path / "cache", model, processor, [embedded])
    assert encoded == [2, 1]


def test_a_later_run_finds_what_is_stored(tmp_path, model_folder, model, processor, dataset, encoded):
    cache = filled(tmp_path / "cache", model, processor, [dataset.select([0, 1])])
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    later = AudioFeatureCache(tmp_path / "cache", again, AutoProcessor.from_pretrained(tmp_path / "again"))
    assert later.folder == cache.folder
    audio = dataset[0]["audio"]
    assert torch.equal(later.load(audio), cache.load(audio))  # without a fill
    with pytest.raises(FileNotFoundError, match=r"c\.wav are not stored. `fill` stores them"):
        later.load(dataset[2]["audio"])
    later.fill([dataset], again)
    assert encoded == [2] and len(files(tmp_path)) == 3


def test_another_front_end_has_another_folder(tmp_path, model, processor, monkeypatch):
    folders = {AudioFeatureCache(tmp_path, model, processor).folder}
    for name, value in {"FRONT_END_VERSION": -1, "audio_engine": lambda: "another"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(fingerprints, name, value)
            folders.add(AudioFeatureCache(tmp_path, model, processor).folder)
    assert len(folders) == 3


def test_what_changes_the_features_changes_the_folder(tmp_path, model_folder, model, processor):
    def folder(**settings):
        return AudioFeatureCache(tmp_path, model, processor, **settings).folder

    folders = [
        folder(),
        folder(dtype="float16"),
        folder(augment=AUGMENT, views=2),
        folder(augment=AUGMENT, views=3),
        folder(augment=SpecAugment(41, 300), views=2),
    ]
    assert folder(augment=AUGMENT) == folders[0]  # without views it plays no part
    louder = AutoProcessor.from_pretrained(model_folder)
    louder.feature_extractor.mel_mean += 1
    folders.append(AudioFeatureCache(tmp_path, model, louder).folder)
    with torch.no_grad():
        model.score_head.layers[0].weight += 1
        assert folder() == folders[0]
        next(model.audio_tower.parameters()).view(-1)[0] += 1e-3
    folders.append(folder())
    model.config.num_audio_tokens = 50
    folders.append(folder())
    model.config.audio_config.layer_norm_eps = 1e-3
    folders.append(folder())
    assert len(set(folders)) == len(folders) == 9


def test_views_are_the_augmented_clips_and_the_seed_chooses(tmp_path, model, processor, dataset):
    plain = filled(tmp_path / "plain", model, processor, [dataset])
    cache = filled(tmp_path / "cache", model, processor, [dataset], augment=AUGMENT, views=3)
    again = filled(tmp_path / "again", model, processor, [dataset], augment=AUGMENT, views=3)
    audio = dataset[0]["audio"]
    torch.testing.assert_close(cache.load(audio), plain.load(audio), atol=1e-5, rtol=0)
    views = [cache.load(audio, seed) for seed in range(6)]
    for number in range(3):
        assert torch.equal(views[number], views[number + 3])
        torch.testing.assert_close(again.load(audio, number), views[number], atol=1e-5, rtol=0)
        assert not torch.allclose(views[number], views[number - 1], atol=1e-3)
        assert not torch.allclose(views[number], cache.load(audio), atol=1e-3)
    assert torch.equal(plain.load(audio, 5), plain.load(audio))


def test_a_view_is_what_the_encoder_makes_of_a_masked_clip(tmp_path, model, processor, dataset, monkeypatch):
    seeds = []

    class Recorded(SpecAugment):
        def __call__(self, input_features, seed):
            seeds.append(seed)
            return super().__call__(input_features, seed)

    cache = filled(tmp_path, model, processor, [dataset.select([1, 2])], augment=Recorded(40, 300), views=2)
    assert len(set(seeds)) == 4  # each clip has masks of its own
    for (clip, number), seed in zip([(1, 0), (1, 1), (2, 0), (2, 1)], seeds, strict=True):
        expected = features_of(model, processor, dataset[clip]["audio"], AUGMENT, seed)
        torch.testing.assert_close(cache.load(dataset[clip]["audio"], number), expected, atol=1e-5, rtol=0)


def test_views_need_an_augmentation(tmp_path, model, processor):
    with pytest.raises(ValueError, match="2 augmented views, but nothing to augment with"):
        AudioFeatureCache(tmp_path, model, processor, views=2)


def test_batches_from_the_store_score_like_those_from_the_sounds(tmp_path, model, processor, dataset):
    cache = filled(tmp_path, model, processor, [dataset], augment=AUGMENT, views=2)
    stored, computed = PairCollator(processor, cache=cache), PairCollator(processor)
    with torch.no_grad():
        expected = model(**computed(list(dataset))).scores
        torch.testing.assert_close(model(**stored(list(dataset))).scores, expected, atol=1e-4, rtol=0)
    rows = TrainingRows(dataset, seed=0)
    loader = DataLoader(rows, batch_size=4, collate_fn=stored, num_workers=2)
    batch = next(iter(loader))
    views = [cache.load(row["audio"], row[AUGMENTATION_SEED]) for row in rows]
    torch.testing.assert_close(batch["audio_features"], torch.stack(views), atol=0, rtol=0)


def test_an_unfinished_file_is_not_taken_for_a_whole_one(tmp_path, model, processor, dataset, encoded, monkeypatch):
    def killed(file, array):
        file.write(b"\x93NUMPY, half")
        raise KeyboardInterrupt

    cache = AudioFeatureCache(tmp_path / "cache", model, processor)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.fill([dataset], model)
    assert files(tmp_path) == [] and list(tmp_path.rglob("*.unfinished")) == []
    old, young = (cache.folder / "00" / f"{name}.unfinished" for name in ("old", "young"))  # of runs that were killed
    old.parent.mkdir(exist_ok=True)
    for path, age in ((old, 7200), (young, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    encoded.clear()
    cache.fill([dataset], model)
    assert encoded == [3] and len(files(tmp_path)) == 3
    assert not old.exists() and young.exists()
    torch.testing.assert_close(
        cache.load(dataset[0]["audio"]), features_of(model, processor, dataset[0]["audio"]), atol=1e-5, rtol=0
    )


def test_a_missing_sound_is_named(tmp_path, model, processor, dataset, sounds):
    cache = AudioFeatureCache(tmp_path / "cache", model, processor)
    sounds[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.wav"):
        cache.fill([dataset], model)
    with pytest.raises(FileNotFoundError, match=r"b\.wav"):
        cache.load(dataset[1]["audio"])


@pytest.mark.parametrize(
    ("content", "reason", "num_workers"),
    [(b"no sound", "not audio", 0), (b"no sound", "not audio", 1), (b"", "empty", 0)],
)
def test_a_broken_sound_is_named_by_its_pair(content, reason, num_workers, tmp_path, model, processor):
    broken = make_dataset([{"id": "the pair", "audio": {"bytes": content, "path": "x.wav"}, "text": "a"}])
    cache = AudioFeatureCache(tmp_path, model, processor)
    with pytest.raises(ValueError, match=reason) as error:
        cache.fill([broken], model, num_workers=num_workers)
    assert "in the pair the pair" in "".join([str(error.value), *getattr(error.value, "__notes__", [])])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, tmp_path, model, processor, dataset, monkeypatch):
    model.audio_tower.requires_grad_(False)
    model.train(training)
    before = {name: module.training for name, module in model.named_modules()}
    encode, modes = model.get_audio_features, []

    def watched(input_features):
        modes.append((model.training, torch.is_grad_enabled()))
        return encode(input_features)

    monkeypatch.setattr(model, "get_audio_features", watched)
    cache = filled(tmp_path, model, processor, [dataset])
    assert modes == [(False, False)] * 2
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not cache.load(dataset[0]["audio"]).requires_grad
    assert all(weight.grad is None for weight in model.parameters())


def test_dropout_and_the_order_of_rows_change_nothing(tmp_path, model, processor, dataset):
    """A model in training mode, and a table that is a shuffled view of another, fill the store alike."""
    model.audio_tower.config.hidden_dropout = 0.5
    for module in model.audio_tower.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    shuffled = dataset.shuffle(seed=0).add_column("label", [0.5] * len(dataset))
    cache = filled(tmp_path / "one", model, processor, [shuffled])
    other = filled(tmp_path / "two", model.eval(), processor, [dataset])
    for row in dataset:
        torch.testing.assert_close(cache.load(row["audio"]), other.load(row["audio"]), atol=1e-5, rtol=0)


def fill_part(rank, port, model_folder, paths, folder):
    """One process that fills a store with others; then one that has another encoder than the others."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    state = PartialState(cpu=True)
    model, processor = AutoModel.from_pretrained(model_folder).eval(), AutoProcessor.from_pretrained(model_folder)
    encode, sizes = model.get_audio_features, []
    model.get_audio_features = lambda input_features, *mask: sizes.append(len(input_features)) or encode(input_features)
    dataset = make_dataset({"id": path, "audio": path, "text": "a sound"} for path in paths)
    cache = AudioFeatureCache(f"{folder}/cache", model, processor)
    cache.fill([dataset], model, batch_size=2)
    sums = [float(cache.load(row["audio"]).sum()) for row in dataset]
    with torch.no_grad():
        next(model.audio_tower.parameters()).add_(rank)
    try:
        AudioFeatureCache(f"{folder}/cache", model, processor).fill([dataset], model)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump([sizes, sums, refusal], file)
    state.destroy_process_group()


def test_two_processes_share_the_work(tmp_path, model_folder, model, processor, dataset, sounds):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(fill_part, port, str(model_folder), [str(path) for path in sounds], str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = filled(tmp_path / "alone", model, processor, [dataset])
    expected = [float(alone.load(row["audio"]).sum()) for row in dataset]
    assert [sizes for sizes, _, _ in found] == [[2], [1]]
    for _, sums, refusal in found:
        assert sums == pytest.approx(expected, abs=1e-2)
        assert "different encoders" in refusal
