"""Rows of a dataset -> batches: what the processor gives, labels, SpecAugment."""

import numpy as np
import pytest
import soundfile
import torch

from modeling_xacle.batches import PairCollator
from modeling_xacle.data import make_dataset

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
