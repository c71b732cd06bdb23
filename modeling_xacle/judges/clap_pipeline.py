"""CLAP models behind the alignment pipeline's interface: the score is the cosine of clip and caption."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import ClapProcessor

from ..pipeline_xacle import SMALLEST_PASS, AudioTextAlignmentPipeline, evaluation_mode
from ..waveforms_xacle import load_waveform
from .clap import ClapTeacher, clip_features


class ZeroShotAlignmentPipeline(AudioTextAlignmentPipeline):
    """
    Scores sounds against captions with a CLAP model, and is called like its parent.

    The whole sound counts, in fixed windows of the model's length whose embeddings are averaged ([`ClapTeacher`]).
    So `window_seconds` and `hop_seconds` have no meaning here, and `return_windows` returns one window.

    Args:
        teacher (`ClapTeacher`): The model with its processor.
        map_cosine (`bool`): Return (cosine + 1) * 5, on 0-10, instead of the cosine in [-1, 1]; no rank changes.
        compute_dtype (`torch.dtype`): Type for the encoders' autocast; embeddings and cosines are float32.
        kwargs: Arguments of `transformers.Pipeline`, such as `device`.
    """

    def __init__(
        self,
        teacher: ClapTeacher,
        map_cosine: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ):
        self.teacher, self.map_cosine, self.compute_dtype = teacher, map_cosine, compute_dtype
        self.max_text_tokens = teacher.max_text_tokens
        processor = ClapProcessor(teacher.feature_extractor, teacher.tokenizer)
        super().__init__(model=teacher.model, processor=processor, task="audio-text-alignment", **kwargs)

    def _check_parts(self) -> None:
        """Does nothing: the teacher has checked its parts already."""

    def tokenize(self, caption: str) -> tuple[str, list[str]]:
        """Returns the caption itself, as the text encoder's tokenizer will get it, and a note if it will be cut."""
        if not isinstance(caption, str):
            raise TypeError(f"A caption must be a string, not {type(caption).__name__}: {caption!r}.")
        if not caption.strip():
            raise ValueError(f"The caption is empty ({caption!r}): a score needs words to compare with the sound.")
        count = len(self.processor.tokenizer(caption, verbose=False)["input_ids"])
        cut = count > self.max_text_tokens
        return caption, [f"caption cut: {count} tokens to {self.max_text_tokens}"] if cut else []

    def preprocess(
        self,
        inputs: Mapping,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        tokenized: list[tuple[Any, list[str]]] | None = None,
    ) -> dict[str, Any]:
        """
        Load one input.

        Returns:
            What the parent returns, with `features` of shape `(num_windows, num_channels, num_frames, num_mel_bins)`
            and `weights` of shape `(num_windows,)` instead of `waveform`.

        Raises:
            ValueError: As the parent, and also if windows are asked for.
        """
        if window_seconds is not None or hop_seconds is not None:
            raise ValueError("A CLAP model hears all of a sound in its own windows; leave out the window options.")
        item = super().preprocess(inputs, sampling_rate, tokenized=tokenized)
        extractor = self.processor.feature_extractor
        waveform = item.pop("waveform")
        item["features"], item["weights"] = clip_features(extractor, waveform, extractor.sampling_rate)
        return item

    def with_spectrograms(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns the input itself, which already has its features."""
        return item

    def _load(
        self, audio: Any, sampling_rate: int | None, window_seconds: float | None, hop_seconds: float | None
    ) -> tuple[torch.Tensor, list[tuple[int, int]], list[str]]:
        """Loads a waveform `(samples,)` at the model's rate; returns it with its first and last sample, and notes."""
        extractor = self.processor.feature_extractor
        waveform, notes = load_waveform(audio, sampling_rate, extractor.sampling_rate)
        seconds, longest = len(waveform) / extractor.sampling_rate, extractor.max_length_s
        if len(waveform) > extractor.nb_max_samples:
            notes.append(f"windowed: {seconds:.6g} s in windows of {longest:g} s")
        elif len(waveform) < extractor.nb_max_samples:
            notes.append(f"padded: {seconds:.6g} s to {longest:g} s")
        return waveform, [(0, len(waveform))], notes

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[torch.Tensor]:
        """
        Embed the clips and the distinct captions of a batch, no more than `pass_size` windows or captions at a time.

        Returns:
            A `torch.Tensor` of shape `(1, num_captions)` for each input.
        """
        captions = list(dict.fromkeys(caption for item in items for caption in item["captions"]))
        places = {caption: place for place, caption in enumerate(captions)}
        autocast = torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)
        with evaluation_mode(self.model), autocast:
            clips = [(item["features"], item["weights"].cpu()) for item in items]
            audio_embeddings = self.teacher.embed_features(clips, pass_size)  # -> (C, D)
            text_embeddings = self.teacher.embed_text(captions, pass_size)  # -> (T, D)
        scores = []
        for item, embedding in zip(items, audio_embeddings, strict=True):
            texts = text_embeddings[[places[caption] for caption in item["captions"]]]
            cosines = (texts * embedding).sum(-1).clamp(-1, 1)  # (T', D), (D,) -> (T',)
            scores.append(((cosines + 1) * 5 if self.map_cosine else cosines).unsqueeze(0))
        return scores
