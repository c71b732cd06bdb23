"""
Train a small CLAP teacher on any dataset of captioned clips, so that pseudo-labels can be made without a download.

    python dataset_scripts/synthetic/train_teacher.py data/aac -o runs/teacher
    python dataset_scripts/label_pairs.py data/aac --teacher runs/teacher -o data/clap_pseudo

The folder holds a `transformers.ClapModel` and its `ClapProcessor`. The model has 0.9 M parameters and hears 16 kHz. It
is a stand-in for trying the chain and for comparing methods on synthetic sounds, and no match for a published CLAP.
Training hears only the first 10 s of a clip.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from training import BF16_HELP, read_split, store_features, train
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.files import is_free, replace_folder, saving, unfinished_folder
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.judges.contrastive import ContrastiveTeacher, separation_auc
from modeling_xacle.judges.embeddings import PairIndex
from modeling_xacle.judges.families import ClapFamily

# In the order of the ids that ClapTextConfig assumes.
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
MAX_CAPTION_TOKENS = 128
MAX_TEST_CLIPS = 1000


def train_tokenizer(captions: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE tokenizer with RoBERTa's special tokens on the captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_CAPTION_TOKENS, **names)


def make_feature_extractor() -> ClapFeatureExtractor:
    """Make an extractor that turns ten seconds at 16 kHz into 1001 frames of 64 mel bins."""
    return ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16000,
        hop_length=160,
        fft_window_size=512,
        max_length_s=10,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    )


def make_model(vocab_size: int) -> ClapModel:
    """
    Make a small CLAP with random weights.

    The audio encoder folds the spectrogram (64 bins x 1024 frames) into a square of 256 x 256, in which each patch of
    8 x 8 is a token; each stage halves the sides and doubles the width, so `hidden_size` is the last stage's width.
    """
    audio_config = {
        "num_mel_bins": 64,
        "spec_size": 256,
        "patch_size": 8,
        "patch_stride": [8, 8],
        "window_size": 8,
        "patch_embeds_hidden_size": 32,
        "depths": [1, 1, 2],
        "num_attention_heads": [2, 4, 8],
        "num_hidden_layers": 3,
        "hidden_size": 128,
    }
    text_config = {
        "vocab_size": vocab_size,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "max_position_embeddings": MAX_CAPTION_TOKENS + 2,
    }
    return ClapModel(ClapConfig(audio_config=audio_config, text_config=text_config, projection_dim=128))


def first_window(extractor: ClapFeatureExtractor, audio: Any) -> torch.Tensor:
    """Returns the features of a clip's first window, of shape `(1, num_frames, num_mel_bins)`."""
    return ClapFamily().clip_features(extractor, audio)[0][0][0]


class CaptionedClips(Dataset):
    """The rows of a split as a model's inputs."""

    def __init__(self, features: np.ndarray, tokens: list[list[int]], rows: np.ndarray):
        self.features, self.tokens, self.rows = features, tokens, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        clip, caption = self.rows[row].tolist()
        return {"features": self.features[clip], "input_ids": self.tokens[caption], "clip": clip, "caption": caption}


class Collator:
    """
    Turns items into `input_features` (B, 1, T, F), `input_ids` and `attention_mask` (B, L), and `matches` (B, B): which
    clips of the batch match which captions, because the clip or the caption is the same.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": [item["input_ids"] for item in items]}, return_tensors="pt")
        clips, captions = (torch.tensor([item[name] for item in items]) for name in ("clip", "caption"))
        return {
            "input_features": torch.from_numpy(np.stack([item["features"] for item in items])).float(),
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "matches": (clips[:, None] == clips) | (captions[:, None] == captions),
        }


def contrastive_loss(
    logits_per_audio: torch.Tensor, logits_per_text: torch.Tensor, matches: torch.Tensor
) -> torch.Tensor:
    """
    Returns the mean of two cross entropies: of the captions given each clip, and of the clips given each caption. If
    several match, the target is spread over them.

    `ClapModel(..., return_loss=True)` is no substitute: it transposes the clips' logits before the cross entropy, so
    that both of its terms choose a clip for a caption (transformers 5.23, `modeling_clap.py`).

    Args:
        logits_per_audio (`torch.Tensor` of shape `(batch_size, batch_size)`): A row for each clip.
        logits_per_text (`torch.Tensor` of shape `(batch_size, batch_size)`): A row for each caption.
        matches (`torch.Tensor` of shape `(batch_size, batch_size)`): Which clip goes with which caption; symmetric,
            true on the diagonal.

    Returns:
        A scalar.
    """
    targets = matches / matches.sum(dim=1, keepdim=True)
    return (cross_entropy(logits_per_audio, targets) + cross_entropy(logits_per_text, targets)) / 2


class ContrastiveTrainer(Trainer):
    """A `Trainer` with the symmetric loss; each process contrasts the pairs in its own batch."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the loss of a batch of shape `(batch_size, ...)` from [`Collator`]."""
        matches = inputs.pop("matches")
        outputs = model(**inputs)
        # The output's own logits do not serve: with several GPUs in one process, each computes only its part's.
        cosines = outputs.audio_embeds @ outputs.text_embeds.T  # (B, D) @ (D, B) -> (B, B)
        scales = self.accelerator.unwrap_model(model)
        loss = contrastive_loss(cosines * scales.logit_scale_a.exp(), cosines.T * scales.logit_scale_t.exp(), matches)
        return (loss, outputs) if return_outputs else loss


def retrieval_figures(teacher: ContrastiveTeacher, index: PairIndex, split: str) -> dict[str, float]:
    """
    Measure the teacher on a split, or on the first clips of a large one: how often a clip that a caption belongs to is
    the best of all, or among the best ten, and the AUC of matching pairs against all others.
    """
    rows = index.rows[split]
    clips = np.unique(rows[:, 0])[:MAX_TEST_CLIPS]
    rows = rows[np.isin(rows[:, 0], clips)]
    captions = np.unique(rows[:, 1])
    audio = teacher.embed_audio([index.audio(clip) for clip in clips.tolist()])
    text = teacher.embed_text([index.captions[caption] for caption in captions])
    cosines = (text @ audio.T).numpy()  # (captions, D) @ (D, clips)
    matches = np.zeros(cosines.shape, dtype=bool)
    matches[np.searchsorted(captions, rows[:, 1]), np.searchsorted(clips, rows[:, 0])] = True
    best = np.where(matches, cosines, -np.inf).max(axis=1, keepdims=True)
    ranks = (np.where(matches, -np.inf, cosines) >= best).sum(axis=1)
    return {
        "clips": len(clips),
        "captions": len(captions),
        "recall@1": float((ranks < 1).mean()),
        "recall@10": float((ranks < 10).mean()),
        "AUC": separation_auc(cosines[matches], cosines[~matches]),
    }


def check_output(output: Path) -> None:
    """Refuse to replace anything but an earlier teacher."""
    if is_free(output):
        return
    config = output / "config.json"
    if not config.is_file() or json.loads(config.read_text()).get("model_type") != "clap":
        raise ValueError(f"{output}: exists and is not a CLAP model; choose another output.")


def main(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of captioned clips, as prepare_aac.py writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; replaces an earlier teacher.")],
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split to test on, if there is one.")] = "validation",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the captions.")] = 10,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs contrasted with each other.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate, after warm-up.")] = 1e-3,
    vocab_size: Annotated[int, typer.Option(min=300, help="Tokens of the tokenizer, at most.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and dropout.")] = 0,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load audio.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help=BF16_HELP)] = False,
) -> None:
    """Train a small CLAP teacher on captioned clips, and say how well it matches those of another split."""
    check_output(output)
    splits = load_pairs(dataset)
    index = read_split(splits, split, dataset)
    set_seed(seed)
    tokenizer = train_tokenizer(index.captions, vocab_size)
    processor = ClapProcessor(make_feature_extractor(), tokenizer)
    model = make_model(len(tokenizer))
    settings = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "bf16": bf16,
    }
    with unfinished_folder(output) as folder:
        features = store_features(
            partial(first_window, processor.feature_extractor), index, folder / "features.npy", num_workers
        )
        clips = CaptionedClips(features, tokenizer(index.captions, truncation=True)["input_ids"], index.rows[split])
        losses = train(model, clips, Collator(tokenizer), folder / "run", ContrastiveTrainer, **settings)
        with saving(folder / "teacher"):
            model.save_pretrained(folder / "teacher")
            processor.save_pretrained(folder / "teacher")
        replace_folder(folder / "teacher", output.absolute())
    typer.echo(f"loss: {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
    tested = test_split if test_split in splits else split
    index = index if tested == split else read_split(splits, tested, dataset)
    figures = retrieval_figures(ContrastiveTeacher(model, processor, model.device), index, tested)
    typer.echo(f"{tested}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    typer.echo(output)


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
