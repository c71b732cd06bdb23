"""`dataset_scripts/mix_clips.py`: what the mixes sound like and say, that nothing else changes, and that it repeats."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import run_script
from mix_clips import join_captions

from modeling_xacle.data import check_rows, load_pairs, make_dataset, save_dataset

SCRIPT = Path(__file__).parents[1] / "dataset_scripts" / "mix_clips.py"
CAPTIONS = {
    "dog": ["A dog barks.", "Barking of a dog"],
    "rain": ["Rain falls.", "It rains"],
    "bell": ["A bell rings and rings and rings, and goes on ringing all the time.", "A bell"],
}
SECONDS = {"dog": 0.5, "rain": 0.3, "bell": 0.2}

run = partial(run_script, SCRIPT)


def tone(name):
    """A clip; any two of them clip when they are added."""
    frequency = 300 * (1 + list(CAPTIONS).index(name))
    return 0.8 * np.sin(2 * np.pi * frequency * np.arange(round(16000 * SECONDS[name])) / 16000)


@pytest.fixture
def corpus(tmp_path):
    rows = []
    for name, captions in CAPTIONS.items():
        soundfile.write(tmp_path / f"{name}.wav", tone(name), 16000)
        rows += [
            {"id": f"{name}-{number}", "audio": str(tmp_path / f"{name}.wav"), "text": text}
            for number, text in enumerate(captions)
        ]
    save_dataset({"train": make_dataset(rows), "validation": make_dataset(rows[:2])}, tmp_path / "aac", licence="mit")
    return tmp_path / "aac"


def expected_mix(first, second):
    mix = np.zeros(max(len(tone(first)), len(tone(second))))
    for name in (first, second):
        mix[: len(tone(name))] += tone(name)
    return mix / max(1, np.abs(mix).max())


def test_a_mix_is_the_sum_of_two_clips_under_both_captions(corpus, tmp_path):
    code, stdout, _ = run(corpus, "--mixes", 12, "-o", tmp_path / "mixed")
    assert code == 0 and "12 mixes, 24 captions added to 6" in stdout
    rows = load_pairs(tmp_path / "mixed", "train").to_list()
    mixes = [row for row in rows if row["source"] == "mix"]
    assert len(mixes) == 24 and check_rows(make_dataset(rows)) == []
    for row in mixes:
        parts = [name for name in CAPTIONS if name in row["text"].lower()]
        samples, rate = soundfile.read(row["audio"]["path"])
        assert rate == 16000
        np.testing.assert_allclose(samples, expected_mix(*parts), atol=2e-4)  # twice 16 bit


def test_the_corpus_stays_as_it_was(corpus, tmp_path):
    assert run(corpus, "--mixes", 3, "-o", tmp_path / "mixed")[0] == 0
    before, after = load_pairs(corpus), load_pairs(tmp_path / "mixed")
    assert after["train"].to_list()[:6] == [{**row, "source": None} for row in before["train"].to_list()]
    columns = before["validation"].column_names
    assert after["validation"].select_columns(columns).to_list() == before["validation"].to_list()


def test_same_seed_same_mixes_on_any_number_of_threads(corpus, tmp_path):
    contents = []
    for name, options in {"a": (), "b": ("--num-workers", 1), "c": ("--seed", 1)}.items():
        assert run(corpus, "--mixes", 8, "-o", tmp_path / name, *options)[0] == 0
        rows = load_pairs(tmp_path / name, "train").to_list()[6:]
        contents.append([(row["text"], Path(row["audio"]["path"]).read_bytes()) for row in rows])
    assert contents[0] == contents[1] != contents[2]


def test_another_run_leaves_the_sounds_of_the_first(corpus, tmp_path):
    out = tmp_path / "mixed"
    run(corpus, "--mixes", 8, "-o", out)
    before = {file: file.read_bytes() for file in (tmp_path / "mixed_sounds").iterdir()}
    run(corpus, "--mixes", 8, "--seed", 1, "-o", out)
    assert before.items() <= {file: file.read_bytes() for file in (tmp_path / "mixed_sounds").iterdir()}.items()
    assert all(Path(row["audio"]["path"]).is_file() for row in load_pairs(out, "train"))


def test_long_captions_are_not_joined(corpus, tmp_path):
    assert run(corpus, "--mixes", 10, "--max-words", 8, "-o", tmp_path / "mixed")[0] == 0
    mixes = load_pairs(tmp_path / "mixed", "train").to_list()[6:]
    assert {name for row in mixes for name in CAPTIONS if name in row["text"].lower()} == {"dog", "rain"}
    code, _, stderr = run(corpus, "--mixes", 1, "--max-words", 3, "-o", tmp_path / "none")
    assert code == 1 and "raise --max-words" in stderr and not (tmp_path / "none").exists()


def test_a_corpus_without_a_train_split(corpus, tmp_path):
    save_dataset({"test": load_pairs(corpus, "validation")}, tmp_path / "odd")
    code, _, stderr = run(tmp_path / "odd", "--mixes", 1, "-o", tmp_path / "mixed")
    assert code == 1 and "it has test" in stderr


def test_joined_captions_are_one_sentence():
    assert join_captions("A dog barks.", "Rain falls.", " while ") == "A dog barks while rain falls."
