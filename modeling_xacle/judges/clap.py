"""
CLAP models as teachers: clips and captions -> unit vectors of one space, the same in every run; and the vectors of a
whole corpus, in shards on disk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoConfig, ClapFeatureExtractor, ClapModel, ClapProcessor
from transformers.utils import logging

from ..checkpoints.fingerprints import audio_key, digest_of, front_end_code, model_fingerprint
from ..feature_extraction_xacle import load_waveform
from ..pipeline_xacle import window_spans

logger = logging.get_logger(__name__)

# A last window shorter than this part of a whole one has no weight in the mean that is worth a pass of the encoder.
# Clips of "10 seconds" are often a few milliseconds longer.
SMALLEST_WINDOW = 0.01
PAIRS_PER_CHUNK = 65536


def clip_features(
    extractor: ClapFeatureExtractor, audio: Any, sampling_rate: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-mel features of the whole of a clip, in windows of at most `extractor.max_length_s`, back to back. The extractor
    itself would crop a longer clip at random; a window that is not full it repeats and pads as for training.

    Args:
        extractor (`ClapFeatureExtractor`): Of the model that will see the features.
        audio: Whatever [`load_waveform`] takes; it is resampled to the extractor's rate.
        sampling_rate (`int`, *optional*): Rate in Hz of bare samples.

    Returns:
        `input_features`, float32 of shape `(num_windows, num_channels, num_frames, num_mel_bins)`, in dB; and `weights`
        of shape `(num_windows,)`: each window's part of the clip's length.

    Raises:
        FileNotFoundError, ValueError, TypeError: As [`load_waveform`].
    """
    waveform, _ = load_waveform(audio, sampling_rate, extractor.sampling_rate)
    longest = extractor.nb_max_samples
    spans = window_spans(len(waveform), longest, longest)
    spans = spans[:1] + [(start, end) for start, end in spans[1:] if end - start >= SMALLEST_WINDOW * longest]
    windows = [waveform[start:end].numpy() for start, end in spans]  # W x (N,)
    features = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    lengths = torch.tensor([end - start for start, end in spans], dtype=torch.float32)
    return features, lengths / lengths.sum()


class ClapTeacher:
    """
    A CLAP model with its processor: embeds clips and captions; the cosine of two embeddings says how well they match.

    Nothing is random: long clips are cut into fixed windows whose embeddings are averaged, weighted by their lengths,
    and no window counts as "longer", which the library's extractor tells models with feature fusion of one clip of
    each batch, drawn by lot.

    Args:
        model (`ClapModel`): Goes into eval mode and to `device`.
        processor (`ClapProcessor`): Its feature extractor and tokenizer.
        device (`str` or `torch.device`): Where embeddings are computed.
    """

    def __init__(self, model: ClapModel, processor: ClapProcessor, device: str | torch.device = "cpu"):
        self.model = model.eval().to(device)
        self.feature_extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        self.fingerprint = digest_of([model_fingerprint(model, processor), front_end_code()])
        self._check_front_end()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        processor: str | Path | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> "ClapTeacher":
        """
        Load a teacher in fp32.

        Args:
            name_or_path (`str` or `Path`): Folder or Hub id of any `transformers.ClapModel`.
            processor (`str` or `Path`, *optional*): Folder or Hub id of the processor, by default the model's own.
            device (`str` or `torch.device`): Where embeddings are computed.
            revision (`str`, *optional*): Of the model on the Hub, and of the processor if it is the model's own.

        Raises:
            ValueError: Not a CLAP model, or weights are missing, or there is no processor.
            OSError: There is no such folder or repository.
        """
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        if config.model_type != "clap":
            raise ValueError(f"{name_or_path}: a model of type {config.model_type}, not clap.")
        model, info = ClapModel.from_pretrained(
            name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()})
        if missing:
            raise ValueError(f"{name_or_path}: weights are missing, they would be random: {', '.join(missing)}.")
        own = _load_processor(processor) if processor else _load_processor(name_or_path, revision)
        return cls(model, own, device)

    def _check_front_end(self) -> None:
        """A fused model takes four spectrograms of a clip, any other takes one; each has its own mel filters."""
        fusion = self.model.config.audio_config.enable_fusion
        if fusion != (self.feature_extractor.truncation == "fusion"):
            raise ValueError(
                f"The model has {'' if fusion else 'no '}feature fusion, but its processor says "
                f'truncation="{self.feature_extractor.truncation}": name the processor of a '
                f"{'fused' if fusion else 'unfused'} checkpoint, such as "
                f"laion/clap-htsat-{'fused' if fusion else 'unfused'}."
            )

    @property
    def embedding_size(self) -> int:
        """Length of an embedding."""
        return self.model.config.projection_dim

    @torch.inference_mode()
    def embed_audio(
        self, audios: Sequence[Any], sampling_rate: int | None = None, batch_size: int = 16
    ) -> torch.Tensor:
        """
        Embeddings of whole clips.

        Args:
            audios (sequence): Each whatever [`load_waveform`] takes.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.
            batch_size (`int`): Windows in one pass of the encoder; it does not change the result.

        Returns:
            `torch.Tensor` of shape `(num_clips, embedding_size)`, of unit length, float32 on the CPU.
        """
        embeddings = [
            self.embed_features(
                [clip_features(self.feature_extractor, audio, sampling_rate) for audio in audios[at : at + batch_size]],
                batch_size,
            )
            for at in range(0, len(audios), batch_size)
        ]
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.embedding_size)

    @torch.inference_mode()
    def embed_features(self, clips: Sequence[tuple[torch.Tensor, torch.Tensor]], batch_size: int = 16) -> torch.Tensor:
        """
        Embeddings of clips, from what [`clip_features`] gives for each.

        Args:
            clips (sequence of pairs): `input_features` of shape `(num_windows, num_channels, num_frames,
                num_mel_bins)`, and `weights` of shape `(num_windows,)`.
            batch_size (`int`): Windows in one pass of the encoder.

        Returns:
            `torch.Tensor` of shape `(num_clips, embedding_size)`, of unit length, float32 on the CPU.
        """
        features = torch.cat([features for features, _ in clips])  # (all windows, C, T, F)
        windows = torch.cat([self._embed_windows(part) for part in features.split(batch_size)])  # -> (all windows, D)
        parts = windows.split([len(weights) for _, weights in clips])
        means = [(weights[:, None] * part).sum(0) for (_, weights), part in zip(clips, parts, strict=True)]  # -> (D,)
        return normalize(torch.stack(means), dim=-1)

    def _embed_windows(self, features: torch.Tensor) -> torch.Tensor:
        """`(num_windows, num_channels, num_frames, num_mel_bins)` -> `(num_windows, embedding_size)`."""
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.model.device)
        output = self.model.get_audio_features(features.to(self.model.device), is_longer=is_longer)
        return output.pooler_output.float().cpu()

    @torch.inference_mode()
    def embed_text(self, captions: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """
        Embeddings of captions; what the text encoder cannot take of a long one is cut, with a warning.

        Args:
            captions (sequence of `str`): Not cleaned or changed in any way.
            batch_size (`int`): Captions in one pass of the encoder; it does not change the result.

        Returns:
            `torch.Tensor` of shape `(num_captions, embedding_size)`, of unit length, float32 on the CPU.
        """
        captions = list(captions)
        embeddings = [torch.empty(0, self.embedding_size)]
        for start in range(0, len(captions), batch_size):
            batch = self._tokenize(captions[start : start + batch_size]).to(self.model.device)  # (B, T)
            embeddings.append(self.model.get_text_features(**batch).pooler_output.float().cpu())
        return torch.cat(embeddings)

    @property
    def max_text_tokens(self) -> int:
        """Tokens of a caption that the text encoder takes. Positions count from the padding id, as in RoBERTa."""
        config = self.model.config.text_config
        return min(self.tokenizer.model_max_length, config.max_position_embeddings - config.pad_token_id - 1)

    def _tokenize(self, captions: list[str]) -> Any:
        """`input_ids` and `attention_mask` of shape `(num_captions, num_tokens)`."""
        longest = self.max_text_tokens
        for caption, ids in zip(captions, self.tokenizer(captions)["input_ids"], strict=True):
            if len(ids) > longest:
                logger.warning(f"cut: {len(ids)} tokens to {longest} in the caption {caption!r}")
        return self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=longest,
            return_token_type_ids=False,
            return_tensors="pt",
        )


def _load_processor(name_or_path: str | Path, revision: str | None = None) -> ClapProcessor:
    try:
        processor = ClapProcessor.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name_or_path}: no CLAP processor there ({str(error).splitlines()[0]}). Name one, such as that of the "
            "checkpoint which this model was trained from."
        ) from error
    return processor


def score_pairs(audio_embeddings: torch.Tensor, text_embeddings: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """
    Cosines of some of all pairs of clips and captions, in chunks that fit into memory.

    Args:
        audio_embeddings (`torch.Tensor` of shape `(num_clips, embedding_size)`): Of unit length.
        text_embeddings (`torch.Tensor` of shape `(num_captions, embedding_size)`): Of unit length.
        pairs (`torch.Tensor` of shape `(num_pairs, 2)`): Index of the clip and of the caption.

    Returns:
        `torch.Tensor` of shape `(num_pairs,)`, in [-1, 1].
    """
    cosines = []
    for chunk in pairs.split(PAIRS_PER_CHUNK):
        clips, captions = audio_embeddings[chunk[:, 0]], text_embeddings[chunk[:, 1]]  # (P, D), (P, D)
        cosines.append(torch.bmm(clips.unsqueeze(1), captions.unsqueeze(2)).flatten())  # -> (P,)
    return torch.cat(cosines).clamp(-1, 1)


def separation_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """
    How well scores tell two kinds of pairs apart: the probability that a positive scores above a negative, ties counted
    half; exactly, from ranks.

    Args:
        positives (`np.ndarray` of shape `(num_positives,)`), negatives (`np.ndarray` of shape `(num_negatives,)`):
            Scores on any scale.

    Returns:
        0.5 if they are told apart no better than by chance, 1 if perfectly; NaN if there are none of a kind.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(ordered, positives, side="right").sum(dtype=np.int64)
    return float(below + not_above) / (2 * len(positives) * len(negatives))


class PairIndex:
    """
    The distinct clips and captions of a dataset of pairs, and which of them each row joins.

    Args:
        splits (`DatasetDict`): As [`modeling_xacle.data.load_pairs`] gives it.

    Attributes:
        clip_keys (list of `str`): [`audio_key`] of each distinct clip, in order of first appearance.
        captions (list of `str`): The distinct captions, in order of first appearance.
        rows (dict of `np.ndarray` of shape `(num_rows, 2)`): For each split, index of the clip and of the caption.
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
        """The sound of a clip, not decoded: a dict with `bytes` and `path`."""
        split, number = self._places[clip]
        return self.splits[split][number]["audio"]


class EmbeddingShards:
    """
    The embeddings of a list of items in files of `shard_size` items each. A file's name carries a digest of its items'
    keys: a file that exists is work done, whoever did it, and one whose items have changed is not found.

    Args:
        folder (`Path`): Where the files lie; one for each model.
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
        """Files to be made by one of several processes that share the work, and the items of each."""
        return [shard for shard in self.shards[process_index::num_processes] if not shard[0].exists()]

    @staticmethod
    def write(path: Path, embeddings: torch.Tensor, broken: dict[int, str] | None = None) -> None:
        """
        Write one file; it appears whole or not at all.

        Args:
            path (`Path`): As [`EmbeddingShards.missing`] gave it.
            embeddings (`torch.Tensor` of shape `(num_items, embedding_size)`): Of the file's items in order.
            broken (`dict`, *optional*): Why an item, counted from the beginning of all, has no embedding.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        metadata = {"broken": json.dumps(broken or {}, ensure_ascii=False)}
        save_file({"embeddings": embeddings.contiguous()}, partial, metadata=metadata)
        os.replace(partial, path)

    def read(self) -> tuple[torch.Tensor, dict[int, str]]:
        """
        All embeddings, of shape `(num_items, embedding_size)`, and why some items have none (their rows are zero).
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
    What [`clip_features`] gives for each of some clips, or in words why a clip has none; for a `DataLoader`, whose
    worker processes then do the loading.

    Args:
        extractor (`ClapFeatureExtractor`): Of the model that will see the features.
        get_audio (callable): Gives the audio of a clip for its index, in a form that [`load_waveform`] takes.
        items (`range`): Indices of the clips.
    """

    def __init__(self, extractor: ClapFeatureExtractor, get_audio: Callable[[int], Any], items: range):
        self.extractor, self.get_audio, self.items = extractor, get_audio, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | str:
        try:
            return clip_features(self.extractor, self.get_audio(self.items[index]))
        except (OSError, ValueError, TypeError) as error:
            return str(error)


def embed_clips(
    teacher: ClapTeacher,
    get_audio: Callable[[int], Any],
    shards: list[tuple[Path, range]],
    batch_size: int = 16,
    num_workers: int = 0,
    show_progress: bool = True,
) -> None:
    """
    Embed clips, each once, and write their shards. A clip that cannot be read stops nothing: its shard says why.

    Args:
        teacher (`ClapTeacher`): The model.
        get_audio (callable): Gives the audio of a clip for its index, in a form that [`load_waveform`] takes.
        shards (list of files and their clips): As [`EmbeddingShards.missing`] gives them.
        batch_size (`int`): Clips loaded together, and windows in one pass of the encoder.
        num_workers (`int`): Processes that load clips and compute features; by default this one does.
        show_progress (`bool`): Show a progress bar where stderr is a terminal.
    """
    for path, items, bar in _with_progress(shards, "clips", show_progress):
        embeddings, broken = torch.zeros(len(items), teacher.embedding_size), {}
        dataset = ClipFeatures(teacher.feature_extractor, get_audio, items)
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
    teacher: ClapTeacher,
    captions: Sequence[str],
    shards: list[tuple[Path, range]],
    batch_size: int = 64,
    show_progress: bool = True,
) -> None:
    """
    Embed captions, each once, and write their shards; arguments as of [`embed_clips`].
    """
    for path, items, bar in _with_progress(shards, "captions", show_progress):
        EmbeddingShards.write(path, teacher.embed_text([captions[item] for item in items], batch_size))
        bar.update(len(items))


def _with_progress(
    shards: list[tuple[Path, range]], unit: str, show_progress: bool
) -> Iterator[tuple[Path, range, tqdm]]:
    """Each file and its items, with the one bar that counts the items of all."""
    total = sum(len(items) for _, items in shards)
    with tqdm(total=total, desc=f"embedding {unit}", unit=unit[:-1], disable=None if show_progress else True) as bar:
        for path, items in shards:
            yield path, items, bar
