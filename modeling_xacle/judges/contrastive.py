"""Contrastive models as judges: they map clips and captions to unit vectors in one space, the same in every run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from ..checkpoints.fingerprints import digest_of, front_end_code, model_fingerprint
from ..checkpoints.loading import load_model, load_part
from .families import FAMILIES, Family

logger = logging.get_logger(__name__)

PAIRS_PER_CHUNK = 65536


class ContrastiveTeacher:
    """
    A contrastive model with its processor: embeds clips and captions; the cosine of two embeddings says how well they
    match.

    Nothing is random: long clips are cut into fixed windows whose embeddings are averaged, weighted by their lengths.

    Args:
        model (`PreTrainedModel`): A model of one of the `FAMILIES`; it is put into eval mode and moved to `device`.
        processor (`ProcessorMixin`): Its feature extractor and tokenizer.
        device (`str` or `torch.device`): Where embeddings are computed.

    Raises:
        ValueError: The processor is another model's.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, device: str | torch.device = "cpu"):
        self.family: Family = FAMILIES[model.config.model_type]
        self.model = model.eval().to(device)
        self.feature_extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        self.fingerprint = digest_of([model_fingerprint(model, processor), front_end_code()])
        self.family.check(model, self.feature_extractor)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        processor: str | Path | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> "ContrastiveTeacher":
        """
        Load a teacher in fp32.

        Args:
            name_or_path (`str` or `Path`): Folder or Hub id of a model of any of the `FAMILIES`.
            processor (`str` or `Path`, *optional*): Folder or Hub id of the processor, by default the model's own.
            device (`str` or `torch.device`): Where embeddings are computed.
            revision (`str`, *optional*): Hub revision of the model, and of the processor if it is the model's own.

        Raises:
            ValueError: It is no such model, or weights or the processor are missing.
            OSError: The folder or repository does not exist.
        """
        found = load_part(AutoConfig, name_or_path, revision)
        if found.model_type not in FAMILIES:
            raise ValueError(f"{name_or_path}: a model of type {found.model_type}, not {', '.join(FAMILIES)}.")
        family = FAMILIES[found.model_type]
        config = family.config(found)
        model = load_model(family.model_class, name_or_path, revision, config=config, dtype=torch.float32)
        source = (processor,) if processor else (name_or_path, revision)
        return cls(model, _load_processor(family, *source), device)

    @property
    def embedding_size(self) -> int:
        """The length of an embedding."""
        return self.family.embedding_size(self.model.config)

    @torch.inference_mode()
    def embed_audio(
        self, audios: Sequence[Any], sampling_rate: int | None = None, batch_size: int = 16
    ) -> torch.Tensor:
        """
        Embed whole clips.

        Args:
            audios (sequence): Clips, each as [`load_waveform`] takes it.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.
            batch_size (`int`): Windows in one pass of the encoder; it does not change the result.

        Returns:
            `torch.Tensor` of shape `(num_clips, embedding_size)`, of unit length, float32 on the CPU.
        """
        embeddings = [
            self.embed_features(
                [self.clip_features(audio, sampling_rate) for audio in audios[at : at + batch_size]],
                batch_size,
            )
            for at in range(0, len(audios), batch_size)
        ]
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.embedding_size)

    def clip_features(self, audio: Any, sampling_rate: int | None = None) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Computes the features of a whole clip and the weights of its windows, as [`Family.clip_features`] does."""
        return self.family.clip_features(self.feature_extractor, audio, sampling_rate)

    @torch.inference_mode()
    def embed_features(
        self, clips: Sequence[tuple[list[torch.Tensor], torch.Tensor]], batch_size: int = 16
    ) -> torch.Tensor:
        """
        Embed clips from their [`Family.clip_features`]. Only windows of one shape share a pass of the encoder.

        Args:
            clips (sequence of pairs): Features of shape `(num_windows, ...)`, and `weights` of shape `(num_windows,)`.
            batch_size (`int`): Windows in one pass of the encoder.

        Returns:
            `torch.Tensor` of shape `(num_clips, embedding_size)`, of unit length, float32 on the CPU.
        """
        windows = [window for features, _ in clips for part in features for window in part]
        places: dict[torch.Size, list[int]] = {}
        for place, window in enumerate(windows):
            places.setdefault(window.shape, []).append(place)
        embeddings = torch.empty(len(windows), self.embedding_size)
        for alike in places.values():
            for start in range(0, len(alike), batch_size):
                chosen = alike[start : start + batch_size]
                features = torch.stack([windows[place] for place in chosen]).to(self.model.device)
                embeddings[chosen] = _unit(self.family.embed_windows(self.model, features))  # (W, ...) -> (W, D)
        parts = embeddings.split([len(weights) for _, weights in clips])
        means = [(weights[:, None] * part).sum(0) for (_, weights), part in zip(clips, parts, strict=True)]  # -> (D,)
        return normalize(torch.stack(means), dim=-1)

    @torch.inference_mode()
    def embed_text(self, captions: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """
        Embed captions; one that is too long for the text encoder is cut, with a warning.

        Args:
            captions (sequence of `str`): The captions, which are not cleaned or changed in any way.
            batch_size (`int`): Captions in one pass of the encoder; it does not change the result.

        Returns:
            `torch.Tensor` of shape `(num_captions, embedding_size)`, of unit length, float32 on the CPU.
        """
        captions = list(captions)
        embeddings = [torch.empty(0, self.embedding_size)]
        for start in range(0, len(captions), batch_size):
            batch = self._tokenize(captions[start : start + batch_size]).to(self.model.device)  # (B, T)
            embeddings.append(_unit(self.family.embed_text(self.model, batch)))
        return torch.cat(embeddings)

    @property
    def max_text_tokens(self) -> int:
        """The most tokens that the text encoder takes."""
        return min(self.tokenizer.model_max_length, self.family.max_text_tokens(self.model.config))

    def _tokenize(self, captions: list[str]) -> Any:
        """Returns `input_ids` and `attention_mask` of shape `(num_captions, num_tokens)`."""
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


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Returns embeddings `(num_items, embedding_size)` in unit length, float32 on the CPU."""
    return normalize(embeddings.float(), dim=-1).cpu()


def _load_processor(family: Family, name_or_path: str | Path, revision: str | None = None) -> ProcessorMixin:
    try:
        return family.processor_class.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name_or_path}: no processor of the model there ({str(error).splitlines()[0]}). Name one, such as that "
            f"of the checkpoint which this model was trained from, or {family.example}."
        ) from error


def score_pairs(audio_embeddings: torch.Tensor, text_embeddings: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """
    Computes the cosines of chosen pairs of clips and captions, in chunks that fit into memory.

    Args:
        audio_embeddings (`torch.Tensor` of shape `(num_clips, embedding_size)`): Of unit length.
        text_embeddings (`torch.Tensor` of shape `(num_captions, embedding_size)`): Of unit length.
        pairs (`torch.Tensor` of shape `(num_pairs, 2)`): Index of each pair's clip and caption.

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
    Measures how well scores tell two kinds of pairs apart: the probability that a positive scores above a negative,
    ties counted half.

    Args:
        positives (`np.ndarray` of shape `(num_positives,)`), negatives (`np.ndarray` of shape `(num_negatives,)`):
            Scores on any scale.

    Returns:
        0.5 if they are told apart no better than by chance, 1 if perfectly; NaN if a kind has no pairs.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    from sklearn.metrics import roc_auc_score  # scoring does not need to load it

    is_positive = np.repeat([True, False], [len(positives), len(negatives)])
    return float(roc_auc_score(is_positive, np.concatenate([positives, negatives])))
