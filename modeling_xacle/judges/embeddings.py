"""A teacher's embeddings of a dataset: each distinct clip and caption once, in files that survive a killed run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoints.fingerprints import audio_key
from ..data.files import whole_file
from .contrastive import ContrastiveTeacher


class PairIndex:
    """
    The distinct clips and captions of a dataset of pairs, and which of them each row joins.

    Args:
        splits (`DatasetDict`): As [`modeling_xacle.data.load_pairs`] returns it.

    Attributes:
        clip_keys (list of `str`): [`audio_key`] of each distinct clip, in order of first appearance.
        captions (list of `str`): The distinct captions, in order of first appearance.
        rows (dict of `np.ndarray` of shape `(num_rows, 2)`): For each split, its rows' indices of clip and caption.
    """

    def __init__(self, splits: DatasetDict):
        clips: dict[str, int] = {}
        captions: dict[str, int] = {}
        self.splits = splits
        self.rows: dict[str, np.ndarray] = {}
        self._places: list[tuple[str, int]] = []
        for split, dataset in splits.items():
            rows = np.empty((len(dataset), 2), dtype=np.int64)
            for number, row in enumerate(dataset.select_columns(["audio", "text"])):
                key = audio_key(row["audio"])
                if key not in clips:
                    self._places.append((split, number))
                rows[number] = clips.setdefault(key, len(clips)), captions.setdefault(row["text"], len(captions))
            self.rows[split] = rows
        self.clip_keys, self.captions = list(clips), list(captions)

    def audio(self, clip: int) -> dict[str, Any]:
        """Returns the sound of a clip, not decoded: a dict with `bytes` and `path`."""
        split, number = self._places[clip]
        return self.splits[split][number]["audio"]


class EmbeddingShards:
    """
    Stores the embeddings of a list of items in files of `shard_size` items each. A file's name contains a digest of its
    items' keys: a file that exists needs no more work, whoever wrote it, and one whose items have changed is not found.

    Args:
        folder (`Path`): Where the files are; each model needs its own.
        kind (`str`): First part of the files' names.
        keys (sequence of `str`): What each item's embedding depends on, besides the model.
        shard_size (`int`): Items in a file.
    """

    def __init__(self, folder: Path, kind: str, keys: Sequence[str], shard_size: int = 1024):
        self.shards: list[tuple[Path, range]] = []
        for number, start in enumerate(range(0, len(keys), shard_size)):
            items = range(start, min(start + shard_size, len(keys)))
            digest = hashlib.sha256("\n".join(keys[start : items.stop]).encode()).hexdigest()[:16]
            self.shards.append((folder / f"{kind}-{number:05d}-{digest}.safetensors", items))

    def __len__(self) -> int:
        return sum(len(items) for _, items in self.shards)

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[tuple[Path, range]]:
        """Returns the files that one of several processes has to make, and the items of each."""
        return [shard for shard in self.shards[process_index::num_processes] if not shard[0].exists()]

    @staticmethod
    def write(path: Path, embeddings: torch.Tensor, broken: dict[int, str] | None = None) -> None:
        """
        Write one file; it appears whole or not at all.

        Args:
            path (`Path`): As [`EmbeddingShards.missing`] returned it.
            embeddings (`torch.Tensor` of shape `(num_items, embedding_size)`): The file's items in order.
            broken (`dict`, *optional*): Why an item has no embedding, by its index in the whole list.
        """
        metadata = {"broken": json.dumps(broken or {}, ensure_ascii=False)}
        with whole_file(path) as partial:
            try:
                save_file({"embeddings": embeddings.contiguous()}, partial, metadata=metadata)
            except SafetensorError as error:
                raise OSError(f"{path}: could not be written ({error}); make room, then try again.") from error

    def read(self) -> tuple[torch.Tensor, dict[int, str]]:
        """
        Read all embeddings, `(num_items, embedding_size)`, and why some items have none (their rows are zero).
        """
        embeddings, broken = [], {}
        for path, _ in self.shards:
            with safe_open(path, framework="pt") as file:
                embeddings.append(file.get_tensor("embeddings"))
                reasons = json.loads(file.metadata()["broken"])
            broken.update({int(item): reason for item, reason in reasons.items()})
        return torch.cat(embeddings), broken


class ClipFeatures(Dataset):
    """
    Gives the features of each clip, or a text that says why it has none. A `DataLoader` around it lets worker processes
    do the loading.

    Args:
        features_of (callable): Computes a sound's features, such as [`Family.clip_features`] with an extractor.
        get_audio (callable): Returns the audio of the clip with an index, in a form that [`load_waveform`] takes.
        items (`range`): Indices of the clips.
    """

    def __init__(self, features_of: Callable[[Any], Any], get_audio: Callable[[int], Any], items: range):
        self.features_of, self.get_audio, self.items = features_of, get_audio, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any | str:
        try:
            return self.features_of(self.get_audio(self.items[index]))
        except (OSError, ValueError, TypeError) as error:
            return str(error)


def embed_clips(
    teacher: ContrastiveTeacher,
    get_audio: Callable[[int], Any],
    shards: list[tuple[Path, range]],
    batch_size: int = 16,
    num_workers: int = 0,
    show_progress: bool = True,
) -> None:
    """
    Embed each clip once and write the shards. A clip that cannot be read stops nothing: its shard says why.

    Args:
        teacher (`ContrastiveTeacher`): The model.
        get_audio (callable): Returns the audio of the clip with an index, in a form that [`load_waveform`] takes.
        shards (list of files and their clips): As [`EmbeddingShards.missing`] returns them.
        batch_size (`int`): Clips loaded together, and windows in one pass of the encoder.
        num_workers (`int`): Processes that load clips and compute features; by default this one does.
        show_progress (`bool`): Show a progress bar where stderr is a terminal.
    """
    for path, items, bar in _with_progress(shards, "clips", show_progress):
        embeddings, broken = torch.zeros(len(items), teacher.embedding_size), {}
        dataset = ClipFeatures(partial(teacher.family.clip_features, teacher.feature_extractor), get_audio, items)
        start = 0
        for batch in DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=list):
            good = [index for index, clip in enumerate(batch) if not isinstance(clip, str)]
            if good:
                clips = [batch[index] for index in good]
                embeddings[[start + index for index in good]] = teacher.embed_features(clips, batch_size)
            broken.update({items[start + index]: clip for index, clip in enumerate(batch) if isinstance(clip, str)})
            start += len(batch)
            bar.update(len(batch))
        EmbeddingShards.write(path, embeddings, broken)


def embed_captions(
    teacher: ContrastiveTeacher,
    captions: Sequence[str],
    shards: list[tuple[Path, range]],
    batch_size: int = 64,
    show_progress: bool = True,
) -> None:
    """
    Embed each caption once and write the shards. The arguments are those of [`embed_clips`].
    """
    for path, items, bar in _with_progress(shards, "captions", show_progress):
        EmbeddingShards.write(path, teacher.embed_text([captions[item] for item in items], batch_size))
        bar.update(len(items))


def _with_progress(
    shards: list[tuple[Path, range]], unit: str, show_progress: bool
) -> Iterator[tuple[Path, range, tqdm]]:
    """Yields each file and its items, with one bar that counts the items of all files."""
    total = sum(len(items) for _, items in shards)
    with tqdm(total=total, desc=f"embedding {unit}", unit=unit[:-1], disable=None if show_progress else True) as bar:
        for path, items in shards:
            yield path, items, bar
