"""
Train both pretrained parts of an alignment model on captioned clips, for when BEATs and Qwen2.5 cannot be downloaded.

    python dataset_scripts/synthetic/train_parts.py data/aac -o runs/parts
    xacle init --tower runs/parts/beats --llm runs/parts/llm -o runs/stage0

`beats` is a `BeatsModel` of 1.4 M parameters, trained to tell which words the captions of a clip use; `llm` is a Qwen2
of 0.7 M parameters with its own tokenizer, trained on the captions alone. Neither knows anything beyond these clips:
they are stand-ins for trying the chain and for comparing methods on synthetic sounds. Training hears only the first
10 s of a clip.
"""

import json
import math
import re
from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.data import DataLoader, Dataset
from training import BF16_HELP, read_split, store_features, train
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    set_seed,
)

from modeling_xacle.checkpoints.conversion import save_folder
from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.configuration_xacle import BeatsConfig
from modeling_xacle.data.files import is_free, replace_folder, unfinished_folder
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.feature_extraction_xacle import XacleFeatureExtractor
from modeling_xacle.judges.embeddings import PairIndex
from modeling_xacle.modeling_beats import BeatsForAudioClassification, BeatsModel

NUM_MEL_BINS = 32
MAX_TEXT_TOKENS = 1024
MODEL_TYPES = {"beats": "xacle_beats", "llm": "qwen2"}


def make_encoder() -> BeatsModel:
    """
    Make a small BEATs with random weights: 62 time steps of 2 patches make 124 tokens of 10 s.

    It has two rows of patches, not BEATs's eight: BEATs does not tell a patch its place in the spectrum, and thousands
    of clips, not millions, must suffice to learn it from the neighbours. The bias lets a patch's level survive the
    norm.
    """
    config = BeatsConfig(
        num_mel_bins=NUM_MEL_BINS,
        patch_embedding_size=128,
        patch_embedding_bias=True,
        hidden_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=640,
        conv_position_kernel_size=31,
        conv_position_groups=10,
        relative_position_num_buckets=64,
        relative_position_max_distance=256,
    )
    return BeatsModel(config)


def add_classifier(encoder: BeatsModel, targets: np.ndarray) -> BeatsForAudioClassification:
    """
    Put a classifier around the encoder, which it trains in place; the encoder's own config does not know the words. It
    starts from the probability of each word in the targets, of shape `(num_clips, num_words)`.
    """
    config = deepcopy(encoder.config)
    config.num_labels = targets.shape[1]
    classifier = BeatsForAudioClassification(config)
    classifier.model = encoder
    classifier.classifier.bias.data = torch.from_numpy(targets.mean(axis=0)).logit()
    return classifier


def make_tokenizer(captions: list[str], vocab_size: int) -> Qwen2Tokenizer:
    """
    Learn Qwen's byte-level BPE from the captions. It keeps upper case: `AutoTokenizer` always takes Qwen's own
    normalizer, whatever a Qwen2 model's folder says (transformers 5.23, `tokenization_auto.py`).
    """
    tokenizer = Qwen2Tokenizer(eos_token="<|im_end|>", model_max_length=MAX_TEXT_TOKENS)
    return tokenizer.train_new_from_iterator(captions, vocab_size, show_progress=False)


def make_language_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Make a small Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=MAX_TEXT_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def words_of_clips(index: PairIndex) -> list[set[str]]:
    """Returns for each clip the lower-cased words of all its captions."""
    words: list[set[str]] = [set() for _ in index.clip_keys]
    for clip, caption in np.concatenate(list(index.rows.values())).tolist():
        words[clip] |= set(re.findall(r"[^\W_]+", index.captions[caption].lower()))
    return words


def choose_words(clips: list[set[str]], min_clips: int) -> list[str]:
    """Returns the words that can be learned, those of at least `min_clips` but not all clips, in alphabetical order."""
    counts = Counter(word for words in clips for word in words)
    chosen = sorted(word for word, count in counts.items() if min_clips <= count < len(clips))
    if not chosen:
        raise ValueError(f"No word occurs with at least {min_clips} of {len(clips)} clips; lower --min-clips.")
    return chosen


def word_targets(clips: list[set[str]], words: list[str]) -> np.ndarray:
    """Returns which clip has which word: float32 of shape `(num_clips, num_words)`, 1 if it has the word."""
    return np.array([[word in clip for word in words] for clip in clips], dtype=np.float32)


def log_mel(extractor: XacleFeatureExtractor, audio: Any) -> torch.Tensor:
    """Returns a clip's spectrogram, of shape `(num_frames, num_mel_bins)`."""
    return extractor(audio, return_notes=True)["input_features"][0]


class LabelledClips(Dataset):
    """
    The classifier's inputs.

    Args:
        features (`np.ndarray` of shape `(num_clips, num_frames, num_mel_bins)`): Normalised log-mel spectrograms.
        targets (`np.ndarray` of shape `(num_clips, num_words)`): Which clip has which word.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray):
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, clip: int) -> dict[str, np.ndarray]:
        return {"input_features": self.features[clip].astype(np.float32), "labels": self.targets[clip]}


def tokenize(tokenizer: Qwen2Tokenizer, captions: list[str]) -> list[dict[str, list[int]]]:
    """Returns each caption's tokens and the end-of-text token, as the language model's inputs."""
    ids = tokenizer(captions, truncation=True, max_length=MAX_TEXT_TOKENS - 1)["input_ids"]
    return [{"input_ids": [*caption, tokenizer.eos_token_id]} for caption in ids]


@torch.inference_mode()
def word_figures(model: BeatsForAudioClassification, clips: LabelledClips, batch_size: int) -> dict[str, float]:
    """Returns AUC and average precision of finding a word's clips, as means over words that some clips have."""
    batches = DataLoader(clips, batch_size)
    logits = [model(batch["input_features"].to(model.device)).logits.float().cpu() for batch in batches]  # (B, words)
    scores, matches = torch.cat(logits).numpy(), clips.targets > 0  # (clips, words)
    tested = [word for word in range(matches.shape[1]) if 0 < matches[:, word].sum() < len(matches)]
    columns = [(scores[:, word], matches[:, word]) for word in tested]
    return {
        "clips": len(clips),
        "words": len(tested),
        "AUC": float(np.mean([roc_auc_score(match, column) for column, match in columns])),
        "mAP": float(np.mean([average_precision_score(match, column) for column, match in columns])),
    }


@torch.inference_mode()
def perplexity(model: Qwen2ForCausalLM, texts: list[dict[str, list[int]]], collator: Any, batch_size: int) -> float:
    """Returns the perplexity of all tokens but each text's first, which nothing precedes."""
    total, count = 0.0, 0
    for batch in DataLoader(texts, batch_size, collate_fn=collator):
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        total += model(**batch.to(model.device)).loss.item() * tokens
        count += tokens
    return math.exp(total / count)


def check_output(output: Path) -> None:
    """Refuse to replace anything but earlier parts."""
    if is_free(output):
        return
    configs = {part: output / part / "config.json" for part in MODEL_TYPES}
    found = {part: json.loads(file.read_text()).get("model_type") for part, file in configs.items() if file.is_file()}
    if found != MODEL_TYPES or {entry.name for entry in output.iterdir()} != set(MODEL_TYPES):
        raise ValueError(f"{output}: exists and does not hold a BEATs and a Qwen2 model; choose another output.")


def report(part: str, model: PreTrainedModel, losses: list[float], tested: str, figures: dict[str, float]) -> None:
    """Print a part's size, losses and test figures."""
    size = f"{model.num_parameters() / 1e6:.2f} M parameters"
    typer.echo(f"{part}: {size}, loss {losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in the last")
    typer.echo(f"{part}, {tested}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def train_beats(
    splits: dict[str, PairIndex],
    folder: Path,
    output: Path,
    min_clips: int,
    num_workers: int,
    **settings: Any,
) -> None:
    """Train the encoder on the first split, test it on the last and save it."""
    extractor = XacleFeatureExtractor(feature_size=NUM_MEL_BINS)
    clips = {split: words_of_clips(index) for split, index in splits.items()}
    words = choose_words(next(iter(clips.values())), min_clips)
    features = {
        split: store_features(partial(log_mel, extractor), index, folder / f"{split}.npy", num_workers)
        for split, index in splits.items()
    }
    targets = {split: word_targets(clips[split], words) for split in splits}
    first, last = next(iter(splits)), list(splits)[-1]
    training = LabelledClips(features[first], targets[first])
    encoder = make_encoder()
    classifier = add_classifier(encoder, training.targets)
    losses = train(classifier, training, None, folder / "run", **settings)
    save_folder(output, encoder, extractor)
    tested = LabelledClips(features[last], targets[last])
    report("beats", encoder, losses, last, word_figures(classifier, tested, settings["per_device_train_batch_size"]))


def train_llm(splits: dict[str, PairIndex], folder: Path, output: Path, vocab_size: int, **settings: Any) -> None:
    """Train the language model on the captions of the first split, test it on those of the last and save it."""
    captions = [index.captions for index in splits.values()]
    tokenizer = make_tokenizer(captions[0], vocab_size)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    model = make_language_model(tokenizer)
    losses = train(model, tokenize(tokenizer, captions[0]), collator, folder / "run", **settings)
    save_folder(output, model, tokenizer)
    batch_size = settings["per_device_train_batch_size"]
    figures = {"perplexity": perplexity(model, tokenize(tokenizer, captions[-1]), collator, batch_size)}
    report("llm", model, losses, list(splits)[-1], figures)


def main(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of captioned clips, as prepare_aac.py writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; replaces earlier parts.")],
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split to test on, if there is one.")] = "validation",
    beats_epochs: Annotated[int, typer.Option(min=1, help="Passes over the clips.")] = 5,
    beats_batch_size: Annotated[int, typer.Option(min=1, help="Clips in a step.")] = 16,
    beats_learning_rate: Annotated[float, typer.Option(help="Highest learning rate, after warm-up.")] = 1.5e-3,
    min_clips: Annotated[int, typer.Option(min=1, help="Clips a word must occur with to be learned.")] = 50,
    llm_epochs: Annotated[int, typer.Option(min=1, help="Passes over the distinct captions.")] = 6,
    llm_batch_size: Annotated[int, typer.Option(min=1, help="Captions in a step.")] = 64,
    llm_learning_rate: Annotated[float, typer.Option(help="Highest learning rate, after warm-up.")] = 3e-3,
    vocab_size: Annotated[int, typer.Option(min=300, help="Tokens of the tokenizer, at most.")] = 800,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load audio.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help=BF16_HELP)] = False,
) -> None:
    """Train a small BEATs encoder and a small language model on captioned clips, and say how good they are."""
    check_output(output)
    pairs = load_pairs(dataset)
    tested = test_split if test_split in pairs else split
    splits = {name: read_split(pairs, name, dataset) for name in (split, tested)}
    names = ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
    common = {"seed": seed, "bf16": bf16}
    beats = dict(zip(names, (beats_epochs, beats_batch_size, beats_learning_rate), strict=True)) | common
    llm = dict(zip(names, (llm_epochs, llm_batch_size, llm_learning_rate), strict=True)) | common
    with unfinished_folder(output) as folder:
        parts = folder / "parts"
        set_seed(seed)
        train_beats(splits, folder, parts / "beats", min_clips, num_workers, **beats)
        set_seed(seed)
        train_llm(splits, folder, parts / "llm", vocab_size, **llm)
        replace_folder(parts, output.absolute())
    typer.echo(output)


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
