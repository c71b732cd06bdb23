"""The code that train_teacher.py and train_parts.py share: read a split, store its features in a file, and train."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments

from modeling_xacle.data.pairs import check_rows
from modeling_xacle.judges.embeddings import ClipFeatures, PairIndex
from modeling_xacle.speed import fast_forms

BF16_HELP = "Multiply matrices in bfloat16: faster on GPUs, and on CPUs that have instructions for it."


def read_split(splits: DatasetDict, name: str, source: str) -> PairIndex:
    """Read and check the clips and captions of one split."""
    if name not in splits:
        raise ValueError(f"{source}: no split {name}; it has {', '.join(splits)}. Choose one with --split.")
    problems = check_rows(splits[name])
    if problems:
        raise ValueError(f"{source}, split {name}: {len(problems)} problems:\n  " + "\n  ".join(problems))
    return PairIndex(DatasetDict({name: splits[name]}))


def store_features(
    features_of: Callable[[Any], torch.Tensor], index: PairIndex, file: Path, num_workers: int
) -> np.ndarray:
    """
    Store the features of all clips, float16 of shape `(num_clips, ...)`, in a file that need not fit into memory: half
    precision is enough for decibels.

    Args:
        features_of (callable): Computes one clip's features, always of the same shape; runs in the loader's processes.
        index (`PairIndex`): The clips.
        file (`Path`): File to write, which `np.load` reads.
        num_workers (`int`): Processes that load clips.

    Raises:
        ValueError: Some clips cannot be read; all of them are named.
    """
    clips = ClipFeatures(features_of, index.audio, range(len(index.clip_keys)))
    shape = features_of({"array": np.zeros(16000, np.float32), "sampling_rate": 16000}).shape
    features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(len(clips), *shape))
    loader = DataLoader(clips, batch_size=None, num_workers=num_workers)
    broken = []
    for clip, result in enumerate(tqdm(loader, desc="features", unit="clip", disable=None)):
        if isinstance(result, str):
            broken.append(result)
        else:
            features[clip] = result
    if broken:
        raise ValueError(f"{len(broken)} clips cannot be read; repair or remove them:\n  " + "\n  ".join(broken))
    return features


def train(
    model: PreTrainedModel,
    dataset: Any,
    collator: Any,
    folder: Path,
    trainer_class: type[Trainer] = Trainer,
    **settings: Any,
) -> list[float]:
    """
    Train a model, with the run's files in a folder. There are no checkpoints: a killed run starts from the beginning.

    Returns:
        The mean loss of each epoch.
    """
    has_accelerator = torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        logging_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=has_accelerator,
        use_cpu=not has_accelerator,  # else bf16 is refused on a CPU
        report_to="none",
        **settings,
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
    with redirect_stdout(sys.stderr), fast_forms(model):  # where the progress bar is
        trainer.train()
    model.eval()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
