"""The audio features of a frozen encoder, computed once for each clip and stored in memory-mapped files."""

import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..checkpoints.fingerprints import digest_of, front_end_code, weights_fingerprint, without_bookkeeping
from ..data.files import file_digest
from ..modeling_xacle import XaclePreTrainedModel
from ..processing_xacle import PairProcessor
from ..speed import fast_forms

# Masks a log-mel spectrogram `(num_frames, num_mel_bins)`, given a seed; its attributes are its settings.
Augment = Callable[[torch.Tensor, int], torch.Tensor]
# A clip to encode: its key, and the table and number of a row that has it.
Clip = tuple[str, Dataset, int]
UNFINISHED = ".unfinished"
ABANDONED_SECONDS = 3600


def content_key(audio: Mapping[str, Any]) -> str:
    """Returns the digest of a clip's file, `{"bytes", "path"}`: the same sound is stored once, wherever it lies."""
    if audio.get("bytes") is not None:
        return hashlib.sha256(audio["bytes"]).hexdigest()
    return file_digest(audio["path"])


def weights_key(model: XaclePreTrainedModel) -> str:
    """Returns a digest of all that `get_audio_features` depends on: the encoder's weights and configuration."""
    config = without_bookkeeping(model.config.audio_config.to_dict())
    tokens = "summary" if getattr(model.config, "takes_summary", False) else model.config.num_audio_tokens
    return digest_of([config, tokens, weights_fingerprint(model.audio_tower)])


def clip_features(processor: PairProcessor, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    Returns the arguments of `get_audio_features` for the sound of one row, without a batch axis: for BEATs
    `input_features` of shape `(num_frames, num_mel_bins)`.

    Raises:
        ValueError, OSError: The sound cannot be read; the row is named.
    """
    try:
        features = processor.feature_extractor(row["audio"], return_notes=True)
    except (ValueError, OSError) as error:
        error.add_note(f"in the pair {row['id']}")
        raise
    return {name: features[name][0] for name in processor.feature_extractor.model_input_names}


class Views(torch.utils.data.Dataset):
    """Keys of clips, and what `get_audio_features` takes: the clip as it is, then its views, `(1 + views, ...)`."""

    def __init__(self, cache: "AudioFeatureCache", clips: list[Clip]):
        self.cache, self.clips = cache, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[str, dict[str, torch.Tensor]]:
        key, rows, number = self.clips[index]
        clip = clip_features(self.cache.processor, rows[number])
        seeds = [zlib.crc32(f"{key}/{view}".encode()) for view in range(self.cache.views)]
        views = {name: values.expand(1 + len(seeds), *values.shape) for name, values in clip.items()}
        masked = [self.cache.augment(clip["input_features"], seed) for seed in seeds]
        return key, {**views, "input_features": torch.stack([clip["input_features"], *masked])}


class AudioFeatureCache:
    """
    Stores the output of `model.get_audio_features`, one file per clip, named by the clip's content, in a folder named
    by the encoder's weights and the settings. Later runs reuse what is there. Several processes fill it together; one
    that is killed loses only the clips in hand.

    Args:
        folder (`Path`): Folder of all stores, on a file system that all processes share.
        model (`XaclePreTrainedModel`): The model, whose encoder is frozen.
        processor (`PairProcessor`): The model's processor.
        dtype (`str`): Type of the stored numbers, `float32` or `float16`.
        augment (`Callable`, *optional*): Makes `views` views of each clip, of which training sees one at a time; a clip
            that is loaded without a seed is not augmented.
        views (`int`): Number of views per clip.

    Raises:
        ValueError: Views are asked for, but no augmentation makes them.
    """

    def __init__(
        self,
        folder: str | Path,
        model: XaclePreTrainedModel,
        processor: PairProcessor,
        dtype: str = "float32",
        augment: Augment | None = None,
        views: int = 0,
    ):
        if views and augment is None:
            raise ValueError(f"{views} augmented views, but nothing to augment with: give `augment`.")
        self.processor, self.augment, self.views, self.dtype = processor, augment, views, np.dtype(dtype)
        settings = {
            "weights": weights_key(model),
            "front end": without_bookkeeping(processor.feature_extractor.to_dict()),
            **front_end_code(),
            "dtype": self.dtype.name,
            "views": views,
            "augmentation": vars(augment) if views else None,
        }
        self.folder = Path(folder).absolute() / digest_of(settings)[:16]
        self.keys: dict[str, str] = {}  # by path, of clips that are files

    def load(self, audio: Mapping[str, Any], seed: int | None = None) -> torch.Tensor:
        """
        Loads the features of a clip `{"bytes", "path"}`, float32 of shape `(num_audio_tokens, audio_hidden_size)`: of
        the clip as it is, or, if there are views and a seed, of the augmented view that the seed chooses.

        Raises:
            FileNotFoundError: The sound does not exist, or was not encoded.
        """
        file = self._file(self._key(audio))
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: the features of {audio['path']} are not stored. `fill` stores them; several machines need a "
                "folder that they share."
            )
        stored = np.load(file, mmap_mode="r")  # (1 + views, N, D)
        view = 0 if seed is None or not self.views else 1 + seed % self.views
        return torch.from_numpy(stored[view].astype(np.float32))

    def fill(
        self, datasets: Iterable[Dataset], model: XaclePreTrainedModel, batch_size: int = 16, num_workers: int = 0
    ) -> None:
        """
        Encode the datasets' clips that are not stored yet; the processes share the work. Which clips are encoded
        together, and so the last bits of their features, follows from the datasets alone, whatever is stored already.

        Args:
            datasets (iterable of `Dataset`): Rows of the schema, whose `audio` is encoded.
            model (`XaclePreTrainedModel`): The constructor's model, on the device to compute on.
            batch_size (`int`): Clips at a time.
            num_workers (`int`): Processes that load sounds.

        Raises:
            FileNotFoundError: A sound does not exist.
            ValueError: A sound cannot be read, or the processes have different encoders.
        """
        state = PartialState()
        if len(set(gather_object([self.folder.name]))) > 1:
            raise ValueError("The processes have different encoders or settings: each must load the same model, whole.")
        clips = self._clips(datasets)
        self._remove_unfinished()
        batches = [range(len(clips))[start : start + batch_size] for start in range(0, len(clips), batch_size)]
        missing = [batch for batch in batches if not all(self._file(clips[place][0]).exists() for place in batch)]
        state.wait_for_everyone()  # so that all see the same clips missing
        mine = missing[state.process_index :: state.num_processes]
        loader = DataLoader(Views(self, clips), batch_sampler=mine, num_workers=num_workers, collate_fn=list)
        total = sum(map(len, mine))
        bar = tqdm(total=total, desc="audio features", unit="clip", disable=None if state.is_main_process else True)
        training = model.training
        model.eval()
        with bar, torch.no_grad(), fast_forms(model):
            for items in loader:
                self._store(items, model)
                bar.update(len(items))
        model.train(training)
        state.wait_for_everyone()

    def _store(self, items: list[tuple[str, dict[str, torch.Tensor]]], model: XaclePreTrainedModel) -> None:
        """Encode clips `(1 + views, ...)` and write each that is not stored to its file, whole or not at all."""
        names = self.processor.feature_extractor.model_input_names
        inputs = {name: torch.cat([views[name] for _, views in items]).to(model.device) for name in names}
        encoded = model.get_audio_features(**inputs).float().cpu().numpy().astype(self.dtype)  # -> (.., N, D)
        for (key, _), stored in zip(items, np.split(encoded, len(items)), strict=True):
            file = self._file(key)
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}{UNFINISHED}")
            try:
                with open(unfinished, "wb") as opened:
                    np.save(opened, stored)
                unfinished.replace(file)
            finally:
                unfinished.unlink(missing_ok=True)

    def _remove_unfinished(self) -> None:
        """Remove what killed runs were writing; another run may be writing what is younger."""
        for path in self.folder.glob(f"*/*{UNFINISHED}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def _clips(self, datasets: Iterable[Dataset]) -> list[Clip]:
        """Lists the distinct clips in the datasets' order; embedded sounds stay on disk."""
        tables = [dataset.select_columns(["id", "audio"]) for dataset in datasets]
        sounds = (row["audio"] for table in tables for row in table)
        self._learn_keys({audio["path"] for audio in sounds if audio["bytes"] is None})
        clips: dict[str, Clip] = {}
        for table in tables:
            for number, row in enumerate(table):
                key = self._key(row["audio"])
                clips.setdefault(key, (key, table, number))
        return list(clips.values())

    def _learn_keys(self, paths: set[str]) -> None:
        """Read the files once, shared among the processes."""
        state = PartialState()
        mine = sorted(paths - self.keys.keys())[state.process_index :: state.num_processes]
        bar = tqdm(mine, desc="audio files", unit="file", disable=None if state.is_main_process else True)
        self.keys.update(gather_object([(path, content_key({"path": path})) for path in bar]))

    def _key(self, audio: Mapping[str, Any]) -> str:
        """Returns the clip's key; a file is read only once for it."""
        if audio["bytes"] is not None:
            return content_key(audio)
        if audio["path"] not in self.keys:
            self.keys[audio["path"]] = content_key(audio)
        return self.keys[audio["path"]]

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"
