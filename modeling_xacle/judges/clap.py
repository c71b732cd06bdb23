"""CLAP models as judges: they map clips and captions to unit vectors in one space, the same in every run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoConfig, ClapFeatureExtractor, ClapModel, ClapProcessor
from transformers.utils import logging

from ..checkpoints.fingerprints import digest_of, front_end_code, model_fingerprint
from ..checkpoints.loading import load_model, load_part
from ..pipeline_xacle import window_spans
from ..waveforms_xacle import load_waveform

logger = logging.get_logger(__name__)

# A last window shorter than this share of a whole one weighs too little in the mean to be worth a pass of the encoder:
# clips of "10 seconds" are often a few milliseconds longer.
SMALLEST_WINDOW = 0.01
PAIRS_PER_CHUNK = 65536


def clip_features(
    extractor: ClapFeatureExtractor, audio: Any, sampling_rate: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes log-mel features of a whole clip, in windows of at most `extractor.max_length_s`, back to back. By itself,
    the extractor would crop a longer clip at random. It repeats and pads a window that is not full, as in training.

    Args:
        extractor (`ClapFeatureExtractor`): The extractor of the model that will see the features.
        audio: Whatever [`load_waveform`] takes; it is resampled to the extractor's rate.
        sampling_rate (`int`, *optional*): Rate in Hz of bare samples.

    Returns:
        `input_features`, float32 of shape `(num_windows, num_channels, num_frames, num_mel_bins)`, in dB; and `weights`
        of shape `(num_windows,)`: each window's share of the clip's length.

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

    Nothing is random: long clips are cut into fixed windows whose embeddings are averaged, weighted by their lengths.
    No window is marked as "longer"; the library's extractor, for models with feature fusion, marks a random clip of
    each batch.

    Args:
        model (`ClapModel`): The model; it is put into eval mode and moved to `device`.
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
            revision (`str`, *optional*): Hub revision of the model, and of the processor if it is the model's own.

        Raises:
            ValueError: It is no CLAP model, or weights or the processor are missing.
            OSError: The folder or repository does not exist.
        """
        config = load_part(AutoConfig, name_or_path, revision)
        if config.model_type != "clap":
            raise ValueError(f"{name_or_path}: a model of type {config.model_type}, not clap.")
        model = load_model(ClapModel, name_or_path, revision, dtype=torch.float32)
        own = _load_processor(processor) if processor else _load_processor(name_or_path, revision)
        return cls(model, own, device)

    def _check_front_end(self) -> None:
        """Checks the processor: a fused model takes four spectrograms of a clip, others one, with other filters."""
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
        """The length of an embedding."""
        return self.model.config.projection_dim

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
                [clip_features(self.feature_extractor, audio, sampling_rate) for audio in audios[at : at + batch_size]],
                batch_size,
            )
            for at in range(0, len(audios), batch_size)
        ]
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.embedding_size)

    @torch.inference_mode()
    def embed_features(self, clips: Sequence[tuple[torch.Tensor, torch.Tensor]], batch_size: int = 16) -> torch.Tensor:
        """
        Embed clips from their [`clip_features`].

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
            embeddings.append(self.model.get_text_features(**batch).pooler_output.float().cpu())
        return torch.cat(embeddings)

    @property
    def max_text_tokens(self) -> int:
        """The most tokens that the text encoder takes. Positions count from the padding id, as in RoBERTa."""
        config = self.model.config.text_config
        return min(self.tokenizer.model_max_length, config.max_position_embeddings - config.pad_token_id - 1)

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
