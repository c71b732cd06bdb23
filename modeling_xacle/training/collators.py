"""Turns rows of a dataset into batches: loads or looks up the sound, applies SpecAugment, adds sequences and labels."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from ..processing_xacle import XacleProcessor
from .feature_cache import AudioFeatureCache, clip_features

# The key of the augmentation seed in a row of the training split; rows of other splits have none.
AUGMENTATION_SEED = "augmentation_seed"


def mask_span(size: int, largest: int, generator: torch.Generator) -> slice:
    """Returns a random span of 0 to `largest` places, at most `size`, anywhere within `size` places."""
    width = int(torch.randint(min(largest, size) + 1, (), generator=generator))
    start = int(torch.randint(size - width + 1, (), generator=generator))
    return slice(start, start + width)


class SpecAugment:
    """
    SpecAugment (arXiv 1904.08779, section 2, without time warping): one random band of mel bins and one random stretch
    of frames of a clip become a constant.

    Args:
        mel_bins (`int`): Widest band.
        frames (`int`): Longest stretch.
        axes (`tuple` of `int`): Which axes of a clip's features are time and mel bins.
        filler (`float`, *optional*): What masked places become: 0, the mean of BEATs's training data, or if `None` the
            clip's own mean, for features on other scales.
    """

    def __init__(self, mel_bins: int, frames: int, axes: tuple[int, int] = (0, 1), filler: float | None = 0.0):
        self.mel_bins, self.frames, self.axes, self.filler = mel_bins, frames, axes, filler

    def __call__(self, input_features: torch.Tensor, seed: int) -> torch.Tensor:
        """Returns a masked copy of a clip's spectrogram `(num_frames, num_mel_bins)`; the seed decides the masks."""
        generator = torch.Generator().manual_seed(seed)
        masked = input_features.clone()
        spectrogram = masked.movedim(self.axes, (-2, -1))  # a view of the same numbers: (..., T, F)
        num_frames, num_mel_bins = spectrogram.shape[-2:]
        filler = input_features.mean() if self.filler is None else self.filler
        spectrogram[..., mask_span(num_mel_bins, self.mel_bins, generator)] = filler
        spectrogram[..., mask_span(num_frames, self.frames, generator), :] = filler
        return masked


class TrainingRows(torch.utils.data.Dataset):
    """
    The training split, with a seed in each row for its augmentation. The seed depends on the run's seed, the epoch and
    the row's id: a row is masked differently in each epoch, but alike in any process, in any order and after resuming.

    Args:
        rows (`Dataset`): Pairs in the schema.
        seed (`int`): The run's seed.
    """

    def __init__(self, rows: Dataset, seed: int):
        self.rows, self.seed = rows, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with workers that outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, AUGMENTATION_SEED: zlib.crc32(f"{self.seed}/{int(self._epoch)}/{row['id']}".encode())}


class AudioCollator:
    """
    Turns the sounds of rows into a model's input.

    Args:
        processor (`XacleProcessor`): Loads the sounds and computes their features.
        augment (`SpecAugment`, *optional*): Applied to rows that have a seed.
        cache (`AudioFeatureCache`, *optional*): Stored features to use instead of the sounds.
    """

    def __init__(
        self,
        processor: XacleProcessor,
        augment: SpecAugment | None = None,
        cache: AudioFeatureCache | None = None,
    ):
        self.processor, self.augment, self.cache = processor, augment, cache

    def audio(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns what the feature extractor makes of them (for BEATs `input_features` of shape `(batch_size, num_frames,
        num_mel_bins)`), or with a cache `audio_features` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`.
        """
        seeds = [row.get(AUGMENTATION_SEED) for row in rows]
        if self.cache is not None:
            stored = [self.cache.load(row["audio"], seed) for row, seed in zip(rows, seeds, strict=True)]
            return {"audio_features": torch.stack(stored)}
        clips = [clip_features(self.processor, row) for row in rows]
        features = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
        if self.augment is not None:
            pairs = zip(features["input_features"], seeds, strict=True)
            masked = [clip if seed is None else self.augment(clip, seed) for clip, seed in pairs]
            features["input_features"] = torch.stack(masked)
        return features


class PairCollator(AudioCollator):
    """
    Turns rows of the schema into inputs of [`XacleModel`], for a `DataLoader` or `Trainer` (with
    `remove_unused_columns=False`).

    Args:
        says_whose (`bool`): Add `is_own`, of shape `(batch_size,)`: 1 for a clip's own caption, 0 for a negative.
    """

    def __init__(self, *args: Any, says_whose: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.says_whose = says_whose

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`, the audio, and, if the rows
        have labels, `labels` of shape `(batch_size,)`, float32 in [-1, 1].

        Raises:
            ValueError: The processor refuses a sound or caption, or only some rows have labels; the row is named.
        """
        batch = {**self.processor(text=[row["text"] for row in rows]), **self.audio(rows)}
        labels = [row.get("label") for row in rows]
        unlabelled = [row["id"] for row, label in zip(rows, labels, strict=True) if label is None]
        if unlabelled and len(unlabelled) < len(rows):
            raise ValueError(f"Pairs without a label among others that have one: {', '.join(unlabelled)}.")
        if not unlabelled:
            batch["labels"] = torch.tensor(labels, dtype=torch.float32)
        if self.says_whose:
            batch["is_own"] = torch.tensor([float(not row["is_negative"]) for row in rows])
        return batch


class CaptionCollator(AudioCollator):
    """Turns rows of the schema into inputs of [`XacleForConditionalGeneration`] for learning the captions."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`, and the audio.

        Raises:
            ValueError: The processor refuses a sound or caption.
        """
        return {**self.processor.caption_sequences([row["text"] for row in rows]), **self.audio(rows)}
