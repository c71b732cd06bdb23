"""`train_parts.py`: the figures, that both parts learn and repeat, and that a model takes them."""

import re
import runpy

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from modeling_xacle.checkpoints.building import init_model
from modeling_xacle.checkpoints.conversion import load_beats
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.feature_extraction_xacle import XacleFeatureExtractor

FOLDER = ROOT / "dataset_scripts/synthetic"
SCRIPT = FOLDER / "train_parts.py"
SAMPLING_RATE = 16000
KINDS = ["low tone", "high tone", "noise", "clicks"]
QUICK = ("--beats-batch-size", 8, "--llm-batch-size", 8, "--min-clips", 2, "--vocab-size", 300)

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(FOLDER))  # where Python looks first when it runs the script
    functions = runpy.run_path(str(SCRIPT))


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return run_script(SCRIPT, *arguments)


def make_sound(kind, generator):
    """Two seconds of one of four kinds of sound."""
    time = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE
    noise = generator.normal(size=len(time))
    sounds = {
        "low tone": lambda: np.sin(2 * np.pi * generator.uniform(150, 300) * time),
        "high tone": lambda: np.sin(2 * np.pi * generator.uniform(2000, 4000) * time),
        "noise": lambda: 0.5 * noise,
        "clicks": lambda: (time % generator.uniform(0.1, 0.2) < 0.01) * noise,
    }
    return 0.2 * sounds[kind]() + 0.001 * noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """16 clips to train on, 8 to test on, with two captions each."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 16, "validation": 8}.items():
        rows = []
        for clip in range(count):
            kind = KINDS[clip % 4]
            path = folder / f"{split}{clip}.wav"
            soundfile.write(path, make_sound(kind, generator), SAMPLING_RATE)
            for text in (f"The sound of {kind}", f"We hear {kind}"):
                rows.append({"id": f"{split}{clip}{text[0]}", "audio": str(path), "text": text})
        splits[split] = make_dataset(rows)
    save_dataset(splits, folder / "aac")
    return folder / "aac"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "parts"
    code, stdout, stderr = run(corpus, "-o", folder, "--beats-epochs", 8, "--llm-epochs", 30, *QUICK)
    assert code == 0, stderr
    return {"folder": folder, "stdout": stdout}


@pytest.fixture
def index():
    """Two clips: the first with two captions."""

    class Index:
        clip_keys = ["first", "second"]
        captions = ["A dog barks, then RAIN", "a dog", "a cat: rain_2"]
        rows = {"train": np.array([[0, 0], [0, 1], [1, 2]])}

    return Index()


def test_the_targets_are_the_words_of_all_captions_of_a_clip(index):
    clips = functions["words_of_clips"](index)
    assert clips == [{"a", "dog", "barks", "then", "rain"}, {"a", "cat", "rain", "2"}]
    words = functions["choose_words"](clips, 1)
    assert words == ["2", "barks", "cat", "dog", "then"]  # not "a" and "rain", which tell nothing
    assert functions["word_targets"](clips, words).tolist() == [[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]]
    with pytest.raises(ValueError, match="lower --min-clips"):
        functions["choose_words"](clips, 3)


def test_the_tokenizer_adds_nothing_and_loses_nothing(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained["folder"] / "llm")
    ids = tokenizer("We hear RAIN — 雨")["input_ids"]
    assert tokenizer.decode(ids) == "We hear RAIN — 雨"
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert None not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id  # else the collator would hide the ends from the loss


def test_perplexity_is_that_of_all_tokens_in_any_batch(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained["folder"] / "llm")
    model = AutoModelForCausalLM.from_pretrained(trained["folder"] / "llm")
    texts = functions["tokenize"](tokenizer, ["We hear noise", "The sound of clicks and rain", "Rain"])
    assert all(text["input_ids"][-1] == tokenizer.eos_token_id for text in texts)
    losses = []
    with torch.no_grad():
        for ids in (torch.tensor([text["input_ids"]]) for text in texts):
            log_likelihoods = model(ids).logits[0, :-1].log_softmax(-1)  # (L - 1, V)
            losses.append(-log_likelihoods.gather(1, ids[0, 1:, None]))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    for batch_size in (1, 2, 3):
        figure = functions["perplexity"](model, texts, collator, batch_size)
        assert figure == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)


def test_both_parts_learn(trained):
    for part in ("beats", "llm"):
        first, last = map(
            float, re.search(rf"{part}: .* loss ([\d.]+) .* ([\d.]+) in the last", trained["stdout"]).groups()
        )
        assert last < 0.8 * first
    auc, precision = re.search(r"clips 8, words \d+, AUC ([\d.]+), mAP ([\d.]+)", trained["stdout"]).groups()
    assert float(auc) > 0.75 and float(precision) > 0.5
    assert float(re.search(r"llm, validation: perplexity ([\d.]+)", trained["stdout"])[1]) < 4


def test_every_weight_is_trained(trained):
    functions["set_seed"](0)
    fresh = dict(functions["make_encoder"]().named_parameters())
    state = load_beats(trained["folder"] / "beats").encoder
    assert state.keys() == fresh.keys()
    assert [name for name, weight in fresh.items() if torch.equal(weight, state[name])] == []


def test_a_model_is_built_from_the_parts(trained, tmp_path):
    parts = trained["folder"]
    model = init_model(parts / "beats", str(parts / "llm"), tmp_path / "model")
    num_mel_bins = XacleFeatureExtractor.from_pretrained(parts / "beats").feature_size
    assert num_mel_bins == model.config.audio_config.num_mel_bins == functions["NUM_MEL_BINS"]
    state = load_beats(parts / "beats").encoder
    assert all(torch.equal(weight, state[name]) for name, weight in model.audio_tower.state_dict().items())


def test_a_seed_gives_the_same_bytes_and_replaces_earlier_parts(corpus, tmp_path):
    files = {}
    for seed in (0, 0, 1):
        once = ("--split", "validation", "--beats-epochs", 1, "--llm-epochs", 1, "--seed", seed)
        code, _, stderr = run(corpus, "-o", tmp_path / "parts", *once, *QUICK)
        assert code == 0, stderr
        content = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert files.setdefault(seed, content) == content
    differing = {str(path) for path in files[0] if files[0][path] != files[1][path]}
    assert differing == {"parts/beats/model.safetensors", "parts/llm/model.safetensors"}


def test_nothing_else_is_replaced(corpus, trained, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    code, _, stderr = run(corpus, "-o", tmp_path)
    assert code == 1 and "choose another output" in stderr and (tmp_path / "thesis.tex").exists()
    functions["check_output"](trained["folder"])


def test_wrong_use_ends_in_a_message(corpus, tmp_path):
    code, _, stderr = run(corpus, "-o", tmp_path / "out", "--split", "dev")
    assert code == 1 and "no split dev; it has train, validation" in stderr
    rows = []
    for kind in ("rain", "wind"):
        (tmp_path / f"{kind}.wav").write_bytes(b"RIFF")
        rows.append({"id": kind, "audio": str(tmp_path / f"{kind}.wav"), "text": kind})
    save_dataset({"train": make_dataset(rows)}, tmp_path / "aac")
    code, _, stderr = run(tmp_path / "aac", "-o", tmp_path / "out", "--min-clips", 1)
    assert code == 1 and "2 clips cannot be read" in stderr and "rain.wav" in stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_help():
    code, stdout, _ = run("--help")
    assert code == 0 and "--beats-epochs" in stdout
