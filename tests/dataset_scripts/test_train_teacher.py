"""`train_teacher.py`: the loss, that training separates pairs, that it repeats, and what it saves."""

import re
import runpy
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, run_script
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoProcessor

from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset
from modeling_xacle.judges.contrastive import ContrastiveTeacher, separation_auc

SCRIPT = ROOT / "dataset_scripts/synthetic/train_teacher.py"
SAMPLING_RATE = 16000
KINDS = ["a low tone", "a high tone", "noise", "clicks"]
functions = runpy.run_path(str(SCRIPT))


run = partial(run_script, SCRIPT)


def make_sound(kind, generator):
    """Two seconds of one of four kinds of sound."""
    time = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE
    noise = generator.normal(size=len(time))
    sounds = {
        "a low tone": lambda: np.sin(2 * np.pi * generator.uniform(150, 300) * time),
        "a high tone": lambda: np.sin(2 * np.pi * generator.uniform(2000, 4000) * time),
        "noise": lambda: 0.5 * noise,
        "clicks": lambda: (time % generator.uniform(0.1, 0.2) < 0.01) * noise,
    }
    return 0.2 * sounds[kind]() + 0.001 * noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """32 clips to train on, 16 to test on."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 32, "validation": 16}.items():
        rows = []
        for clip in range(count):
            kind = KINDS[clip % 4]
            path = folder / f"{split}{clip}.wav"
            soundfile.write(path, make_sound(kind, generator), SAMPLING_RATE)
            rows.append({"id": f"{split}{clip}", "audio": str(path), "text": f"The sound of {kind}"})
        splits[split] = make_dataset(rows)
    save_dataset(splits, folder / "aac")
    return folder / "aac"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    code, stdout, stderr = run(corpus, "-o", folder, "--epochs", 10, "--batch-size", 8)
    assert code == 0, stderr
    return {"folder": folder, "stdout": stdout}


def test_the_loss_chooses_captions_for_clips_and_clips_for_captions():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 5, generator=generator)
    targets = torch.arange(5)
    loss = functions["contrastive_loss"](logits, logits.T, torch.eye(5, dtype=torch.bool))
    expected = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(loss, expected)
    swapped = functions["contrastive_loss"](logits.T, logits, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, swapped)


def test_pairs_that_match_are_no_negatives_of_each_other():
    matches = torch.eye(3, dtype=torch.bool)
    matches[0, 1] = matches[1, 0] = True
    best = torch.where(matches, 20.0, 0.0)
    loss = functions["contrastive_loss"](best, best.T, matches)
    assert loss.item() == pytest.approx(2 * np.log(2) / 3, abs=1e-4)  # only which of the two equal ones is open
    assert functions["contrastive_loss"](best, best.T, torch.eye(3, dtype=torch.bool)) >= loss


def test_a_batch_knows_equal_clips_and_equal_captions():
    tokenizer = functions["train_tokenizer"](["a dog barks", "rain"], 300)
    items = [
        {
            "features": np.zeros((1, 4, 2), np.float16),
            "input_ids": [0, 5, 2][: 2 + caption],
            "clip": clip,
            "caption": caption,
        }
        for clip, caption in [(0, 0), (1, 1), (0, 1)]
    ]
    batch = functions["Collator"](tokenizer)(items)
    assert batch["matches"].tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    assert batch["input_features"].shape == (3, 1, 4, 2) and batch["input_features"].dtype == torch.float32
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 3, 3]


def test_the_tokenizer_loses_nothing_and_ignores_case():
    captions = ["A dog barks twice", "Café — 雨が降る, naïve!"]
    tokenizer = functions["train_tokenizer"](captions * 5, 400)
    for caption in captions:
        ids = tokenizer(caption)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption.lower()
        assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer("RAIN")["input_ids"] == tokenizer("rain")["input_ids"]


def test_training_lowers_the_loss_and_separates_pairs_of_clips_not_heard(corpus, trained):
    first, last = map(float, re.search(r"loss: ([\d.]+) .* ([\d.]+) in the last", trained["stdout"]).groups())
    assert last < 0.75 * first
    teacher = ContrastiveTeacher.from_pretrained(trained["folder"])
    clips = teacher.embed_audio([row["audio"]["path"] for row in load_pairs(corpus, "validation")])
    cosines = (clips @ teacher.embed_text([f"The sound of {kind}" for kind in KINDS]).T).numpy()
    matches = np.arange(16)[:, None] % 4 == np.arange(4)
    auc = separation_auc(cosines[matches], cosines[~matches])
    assert auc > 0.9
    hits = matches[cosines.argmax(axis=0), range(4)].mean()
    assert f"validation: clips 16, captions 4, recall@1 {hits:.4g}, recall@10 1, AUC {auc:.4g}" in trained["stdout"]


def test_the_folder_loads_with_the_auto_classes(trained):
    assert type(AutoModel.from_pretrained(trained["folder"])).__name__ == "ClapModel"
    assert type(AutoProcessor.from_pretrained(trained["folder"])).__name__ == "ClapProcessor"
    names = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in trained["folder"].iterdir()} == names
    assert [entry.name for entry in trained["folder"].parent.iterdir()] == [trained["folder"].name]


def test_every_weight_is_trained(trained):
    teacher = ContrastiveTeacher.from_pretrained(trained["folder"])
    functions["set_seed"](0)
    fresh = dict(functions["make_model"](len(teacher.tokenizer)).named_parameters())
    still = [name for name, weight in teacher.model.named_parameters() if torch.equal(weight, fresh[name])]
    assert still == []


def test_a_seed_gives_the_same_bytes(corpus, tmp_path):
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        assert run(corpus, "-o", folder, "--epochs", 1, "--batch-size", 16, "--seed", seed)[0] == 0
    first, again, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert first == again
    assert first["tokenizer.json"] == other["tokenizer.json"]
    assert first["model.safetensors"] != other["model.safetensors"]


def test_an_earlier_teacher_is_replaced_and_nothing_else(corpus, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    code, _, stderr = run(corpus, "-o", tmp_path / "mine")
    assert code == 1 and "choose another output" in stderr and (tmp_path / "mine" / "thesis.tex").exists()
    functions["check_output"](trained["folder"])


def test_wrong_use_ends_in_a_message(corpus, tmp_path):
    code, _, stderr = run(corpus, "-o", tmp_path / "out", "--split", "dev")
    assert code == 1 and "no split dev; it has train, validation" in stderr
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    rows = [{"id": str(n), "audio": str(broken), "text": "rain"} for n in range(2)]
    save_dataset({"train": make_dataset(rows)}, tmp_path / "aac")
    code, _, stderr = run(tmp_path / "aac", "-o", tmp_path / "out")
    assert code == 1 and "1 clips cannot be read" in stderr and "broken.wav" in stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_help():
    code, stdout, _ = run("--help")
    assert code == 0 and "--epochs" in stdout
