"""Rows of a dataset -> batches: what the processor gives, labels, SpecAugment."""

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from modeling_xacle.data.pairs import make_dataset
from modeling_xacle.training.collators import (
    AUGMENTATION_SEED,
    CaptionCollator,
    PairCollator,
    SpecAugment,
    TrainingRows,
)

FULL = {"label": 0.5, "score": 7.5}


@pytest.fixture
def rows(tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.sin(np.arange(8000 * (number + 1)) / (9 + number)) / 2, 16000)
    return [{"id": str(number), "audio": str(path), "text": f"Sound {number}"} for number, path in enumerate(paths)]


@pytest.fixture
def full_rows(rows):
    return [{**row, **FULL} for row in rows]


def test_collator_gives_what_the_processor_gives(processor, full_rows):
    dataset = make_dataset(full_rows)
    batch = PairCollator(processor)([dataset[0], dataset[2]])
    expected = processor(
        text=[full_rows[0]["text"], full_rows[2]["text"]], audio=[full_rows[0]["audio"], full_rows[2]["audio"]]
    )
    assert set(batch) == {*expected, "labels"}
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(batch["labels"], torch.tensor([0.5, 0.5]))


def test_collator_and_labels(processor, model, rows, full_rows):
    collate = PairCollator(processor)
    assert "labels" not in collate(rows)
    with pytest.raises(ValueError, match="without a label among others that have one: 0"):
        collate([rows[0], full_rows[1]])
    assert torch.isfinite(model(**collate(full_rows[:1])).loss)


def test_collator_names_the_pair_with_a_broken_sound(processor, rows):
    rows[1]["audio"] = {"bytes": b"no sound", "path": None}
    with pytest.raises(ValueError, match="not audio") as error:
        PairCollator(processor)(rows)
    assert error.value.__notes__ == ["in the pair 1"]


def masked_places(augment, seed, num_frames=200, num_mel_bins=128):
    """Which mel bins and which frames of a spectrogram are masked; everything else must be as it was."""
    features = torch.randn(num_frames, num_mel_bins, generator=torch.Generator().manual_seed(9))
    before = features.clone()
    masked = augment(features, seed)
    assert torch.equal(features, before)  # the input is not written to
    gone = masked == 0
    bins, frames = gone.all(dim=0).nonzero().flatten(), gone.all(dim=1).nonzero().flatten()
    expected = features.clone()
    expected[:, bins] = 0
    expected[frames] = 0
    assert torch.equal(masked, expected)
    return bins.tolist(), frames.tolist()


def test_spec_augment_masks_one_band_and_one_stretch():
    found = [masked_places(SpecAugment(15, 30), seed) for seed in range(200)]
    for axis, largest, size in ((0, 15, 128), (1, 30, 200)):
        places = [masks[axis] for masks in found]
        widths = {len(spots) for spots in places}
        assert min(widths) == 0 and max(widths) == largest
        assert all(spots == list(range(spots[0], spots[0] + len(spots))) for spots in places if spots)
        assert min(spots[0] for spots in places if spots) < 10
        assert max(spots[-1] for spots in places if spots) > size - 10


def test_spec_augment_does_what_the_seed_says():
    augment = SpecAugment(15, 30)
    assert masked_places(augment, 5) == masked_places(augment, 5) == masked_places(SpecAugment(15, 30), 5)
    assert len({str(masked_places(augment, seed)) for seed in range(20)}) == 20
    state = torch.get_rng_state()
    augment(torch.ones(4, 4), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_spec_augment_of_no_size_and_of_too_much():
    for seed in range(20):
        assert masked_places(SpecAugment(0, 0), seed) == ([], [])
        assert masked_places(SpecAugment(15, 0), seed)[1] == masked_places(SpecAugment(0, 30), seed)[0] == []
        masked_places(SpecAugment(500, 500), seed, num_frames=7, num_mel_bins=3)


def seeds(rows):
    return {row["id"]: row[AUGMENTATION_SEED] for row in rows}


def test_seeds_of_training_rows(full_rows):
    dataset = make_dataset(full_rows)
    training = TrainingRows(dataset, seed=1)
    first = seeds(training)
    assert len(training) == 3 and len(set(first.values())) == 3
    assert {name: value for name, value in training[1].items() if name != AUGMENTATION_SEED} == dataset[1]
    assert seeds(TrainingRows(dataset.select([2, 0]), seed=1)) == {id: first[id] for id in ("2", "0")}
    assert not set(seeds(TrainingRows(dataset, seed=2)).values()) & set(first.values())
    training.set_epoch(1)
    assert not set(seeds(training).values()) & set(first.values())
    training.set_epoch(0)
    assert seeds(training) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_that_persist_see_the_epoch(num_workers, full_rows):
    training = TrainingRows(make_dataset(full_rows), seed=1)
    loader = DataLoader(training, num_workers=num_workers, persistent_workers=num_workers > 0, collate_fn=list)
    for epoch in (0, 3, 1):
        training.set_epoch(epoch)
        expected = seeds(training)
        assert seeds(row for batch in loader for row in batch) == expected


def test_collators_augment_rows_with_a_seed_only(processor, full_rows):
    collate = PairCollator(processor, SpecAugment(15, 30))
    plain = PairCollator(processor)(full_rows)["input_features"]
    rows = [full_rows[0], {**full_rows[1], AUGMENTATION_SEED: 7}, {**full_rows[2], AUGMENTATION_SEED: 8}]
    features = collate(rows)["input_features"]
    torch.testing.assert_close(features[0], plain[0], rtol=0, atol=0)
    for number, seed in ((1, 7), (2, 8)):
        assert not torch.equal(features[number], plain[number])
        torch.testing.assert_close(features[number], SpecAugment(15, 30)(plain[number], seed), rtol=0, atol=0)
    torch.testing.assert_close(PairCollator(processor)(rows)["input_features"], plain, rtol=0, atol=0)


def test_caption_collator_gives_what_the_processor_gives(processor, full_rows):
    batch = CaptionCollator(processor)(full_rows)
    expected = processor.prepare_captioning(
        [row["audio"] for row in full_rows], [f"{row['text']}" for row in full_rows]
    )
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, rtol=0, atol=0)


class Cache:
    """A stand-in for stored features: one number for each sound and seed."""

    def load(self, audio, seed=None):
        return torch.full((100, 48), hash((audio, seed)) % 1000 / 1000)


@pytest.mark.parametrize("collator", [PairCollator, CaptionCollator])
def test_stored_features_take_the_place_of_sounds(collator, processor, model, full_rows):
    rows = [{**row, AUGMENTATION_SEED: 3, "audio": f"no file {number}"} for number, row in enumerate(full_rows)]
    batch = collator(processor, SpecAugment(15, 30), Cache())(rows)
    assert "input_features" not in batch
    expected = [Cache().load(row["audio"], 3) for row in rows]
    torch.testing.assert_close(batch["audio_features"], torch.stack(expected), rtol=0, atol=0)
